"""`flash_llm prompt`: one answer, by the running node or by an engine of its own."""

from argparse import ArgumentParser, Namespace
from importlib.util import find_spec
import json
import os
from pathlib import Path
import sys
from typing import TYPE_CHECKING

from flash_llm_ros.cli.main import INTERRUPTED, fail
from flash_llm_ros.cli.seconds import seconds
from flash_llm_ros.store.errors import FlashLlmError

if TYPE_CHECKING:
    from flash_llm_ros.client import FlashLlmClient
    from flash_llm_ros.engine import GenerationCost
    from flash_llm_ros.engine.request.constraint import Constraint

EPILOG = """\
examples:
  flash_llm prompt 'Name the capital of France.'               the running node answers
  flash_llm prompt /data/smollm2.store 'Name the capital of France.' --budget 96MB
                                                               an engine of its own answers
  flash_llm prompt --node /robot/flash_llm 'Status?' --session operator --deadline 10
  flash_llm prompt 'Left or right?' --choice left --choice right --json
  dmesg | tail | flash_llm prompt -                            the prompt is read from stdin

The answer goes to stdout as it comes, what it cost to stderr. Ctrl-C cancels the request.
Where a store is named an engine of its own answers from it, else the running node. A robot's
memory rarely holds two engines.
"""
ENGINE_OPTIONS = ('budget', 'mode', 'context', 'threads', 'draft')
NODE_OPTIONS = ('node', 'find_timeout', 'deadline', 'priority', 'session')
FIND_TIMEOUT = 3.0      # s
CANCEL_TIMEOUT = 5.0    # s
COSTS = ('prompt_tokens', 'cached_tokens', 'generated_tokens', 'time_to_first_token',
         'tokens_per_second', 'passes', 'drafted_tokens', 'accepted_tokens',
         'flash_bytes', 'flash_reads', 'hit_rate', 'active_fraction', 'seed')


def add_arguments(parser: ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument('store', nargs='?', type=Path,
                        help='a flash store, for an engine of its own')
    parser.add_argument('prompt', help='what to ask; -: read it from stdin')
    parser.add_argument('--json', action='store_true',
                        help='print the answer and what it cost as JSON when it is complete')
    parser.add_argument('--max-tokens', type=int, metavar='N',
                        help="longest answer (default: 128, or the node's parameter)")
    parser.add_argument('--system', default='', metavar='TEXT', help='system prompt')
    parser.add_argument('--raw', action='store_true', help='leave the chat template out')
    parser.add_argument('--temperature', type=float, default=0.0, metavar='T',
                        help='0: the most likely token (default), above: more variety')
    parser.add_argument('--seed', type=int, default=0, metavar='N',
                        help='of the variety (default: 0)')
    form = parser.add_mutually_exclusive_group()
    form.add_argument('--json-schema', type=Path, metavar='FILE',
                      help='the answer is JSON that this schema allows')
    form.add_argument('--regex', help='the whole answer matches this regular expression')
    form.add_argument('--choice', action='append', metavar='TEXT',
                      help='the answer is one of these (give it several times)')
    node = parser.add_argument_group('by the running node')
    node.add_argument('--node', metavar='NAME', help='with its namespace (default: flash_llm)')
    node.add_argument('--find-timeout', type=seconds, metavar='S',
                      help=f'seconds to wait until it is there and active (default: '
                           f'{FIND_TIMEOUT:g})')
    node.add_argument('--deadline', type=seconds, metavar='S',
                      help="seconds until the answer ends as it is (default: the node's parameter)")
    node.add_argument('--priority', type=int, metavar='0-255',
                      help='the highest goes first (default: 100)')
    node.add_argument('--session', metavar='NAME', help='go on with this conversation')
    engine = parser.add_argument_group('by an engine of its own')
    engine.add_argument('--budget', metavar='SIZE', help='DRAM budget (default: 96MB)')
    engine.add_argument('--mode', help="as the node's parameter (default: auto)")
    engine.add_argument('--context', type=int, metavar='N',
                        help='tokens of prompt and answer together (default: 2048, or what the '
                        'model was trained for, if that is less)')
    engine.add_argument('--threads', type=int, metavar='N', help='that compute (default: 1)')
    engine.add_argument('--draft', type=Path, metavar='STORE',
                        help='a flash store of a small model that guesses tokens')
    parser.set_defaults(usage_error=parser.error)


def run(options: Namespace) -> int:
    """Return 0, 1 where nobody answered or the answer ended with an error, 130 on Ctrl-C."""
    _check_usage(options)
    try:
        if options.prompt == '-':
            options.prompt = sys.stdin.read()
        return _by_node(options) if options.store is None else _by_engine(options)
    except (ConnectionError, FlashLlmError, OSError, ValueError) as error:
        return fail(error)


def _check_usage(options: Namespace) -> None:
    def given(names: tuple[str, ...]) -> list[str]:
        return [f'--{name.replace("_", "-")}' for name in names
                if getattr(options, name) is not None]

    if options.store is None:
        if for_engine := given(ENGINE_OPTIONS):
            options.usage_error(f'{for_engine[0]} is for an engine of its own, which needs a flash '
                                'store: STORE PROMPT')
        if os.path.isfile(os.path.join(options.prompt, 'manifest.yaml')):
            options.usage_error(f'{options.prompt} is a flash store; what is to be asked stands '
                                'behind it: STORE PROMPT')
    elif for_node := given(NODE_OPTIONS):
        options.usage_error(f'{for_node[0]} is for the running node; leave the store out')


def _by_node(options: Namespace) -> int:
    if find_spec('rclpy') is None or find_spec('flash_llm_msgs') is None:
        raise ConnectionError(
            'ROS 2 (rclpy, flash_llm_msgs) is not there, so no node can be asked; source it, '
            'or name a flash store: flash_llm prompt STORE PROMPT')
    from flash_llm_ros.client import FlashLlmClient

    patience = FIND_TIMEOUT if options.find_timeout is None else options.find_timeout
    with FlashLlmClient(options.node or 'flash_llm', find_timeout=patience) as client:
        return _ask(client, options)


def _ask(client: 'FlashLlmClient', options: Namespace) -> int:
    pending = client.start(
        options.prompt, system_prompt=options.system, raw=options.raw,
        max_tokens=options.max_tokens or 0, temperature=options.temperature, seed=options.seed,
        deadline=options.deadline or 0.0, session_id=options.session or '',
        priority=100 if options.priority is None else options.priority,
        json_schema=options.json_schema and _schema(options.json_schema),
        regex=options.regex, choices=options.choice)
    try:
        for piece in pending:
            _show(piece, options)
        answer = pending.result()
    except KeyboardInterrupt:
        pending.cancel()
        answer = pending.result(CANCEL_TIMEOUT)
        _finish(answer.text, answer.finish_reason.name, answer.stats, client.name, options)
        _say('cancelled')
        return INTERRUPTED
    except FlashLlmError:
        print(flush=True)
        raise
    _finish(answer.text, answer.finish_reason.name, answer.stats, client.name, options)
    return 0


def _by_engine(options: Namespace) -> int:
    # Takes a second to import, which asking the node does not need.
    from flash_llm_ros.engine import Engine, EngineConfig, GenerationRequest, SamplingParams
    from flash_llm_ros.engine.byte_size import parse_byte_size
    from flash_llm_ros.engine.memory.process_memory import peak_resident_bytes

    def value(name: str, default: object) -> object:
        given = getattr(options, name)
        return default if given is None else given

    constraint = _constraint(options)
    config = EngineConfig(
        options.store, parse_byte_size('budget', value('budget', '96MB')),
        value('mode', EngineConfig.mode),
        context_length=value('context', EngineConfig.context_length), threads=value('threads', 1),
        structured=constraint is not None, draft_store=options.draft)
    engine = Engine.open(config, _say)
    try:
        generation = engine.start(GenerationRequest(
            options.prompt, options.system, options.raw,
            SamplingParams(temperature=options.temperature, seed=options.seed),
            value('max_tokens', 128), constraint=constraint))
        pieces = []
        for piece in generation:
            pieces.append(piece)
            _show(piece, options)
    finally:
        engine.close()
    _say('\n' + engine.plan.table())
    _finish(''.join(pieces), generation.finish_reason.name, generation.stats,
            f'engine, read with {engine.reader}', options)
    _say(f'peak RSS {peak_resident_bytes() / 1e6:.0f} MB')
    return 0


def _constraint(options: Namespace) -> 'Constraint | None':
    from flash_llm_ros.engine.request.constraint import Constraint, ConstraintKind

    if options.json_schema is not None:
        return Constraint(ConstraintKind.JSON_SCHEMA, _schema(options.json_schema))
    if options.regex is not None:
        return Constraint(ConstraintKind.REGEX, options.regex)
    if options.choice is not None:
        return Constraint(ConstraintKind.CHOICES, choices=tuple(options.choice))
    return None


def _schema(path: Path) -> str:
    try:
        return path.read_text('utf-8-sig')      # some editors write a mark in front
    except UnicodeDecodeError as error:
        raise ValueError(f'{path} is not UTF-8 at byte {error.start}, as a JSON schema has to '
                         'be.') from None


def _show(piece: str, options: Namespace) -> None:
    if not options.json:
        print(piece, end='', flush=True)


def _finish(text: str, reason: str, cost: 'GenerationCost', via: str, options: Namespace) -> None:
    if options.json:
        print(json.dumps({'text': text, 'finish_reason': reason, 'via': via,
                          **{name: getattr(cost, name) for name in COSTS if hasattr(cost, name)}}))
    else:
        print(flush=True)
    tokens = max(cost.generated_tokens, 1)
    _say(f'{cost.prompt_tokens} + {cost.generated_tokens} tokens ({reason}), first after '
         f'{cost.time_to_first_token:.2f} s, then {cost.tokens_per_second:.1f} a second; '
         f'{cost.flash_bytes / 1e6 / tokens:.1f} MB in {cost.flash_reads / tokens:.0f} reads a '
         f'token; {via}')


def _say(line: str) -> None:
    print(line, file=sys.stderr)
