"""`flash_llm demo`: one prompt through a node of its own, and what the answer cost."""

import argparse
import json
import os
from pathlib import Path
import sys
import time
from typing import TYPE_CHECKING

from flash_llm_ros.cli.node_process import NodeProcess
from flash_llm_ros.cli.output_path import output_file
from flash_llm_ros.engine import EngineConfig, FinishReason, MemoryPlan, PlanRow
from flash_llm_ros.engine.config import MODES

if TYPE_CHECKING:
    from flash_llm_msgs.action import GenerateText
    from flash_llm_msgs.msg import TokenChunk
    from flash_llm_ros.client.operator import OperatorClient

EPILOG = """\
examples:
  flash_llm demo --store /data/smollm2.store
  flash_llm demo --store /data/smollm2.store --budget 64MB --mode exact --json demo.json

The node gets a ROS domain of its own and is ended with the command.
"""
START_TIMEOUT = 60.0  # s
CLIENT_DOMAINS = 100  # 1 to 100 are free on every platform
CONTEXT = 512           # tokens of one prompt and its answer: the window has the memory of more
TOTALS = ('planned', 'budget', 'model on flash')  # not rows of the plan


class DemoError(Exception):
    """The node said no; the text is its own sentence."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument('--store', type=Path, required=True, help='folder of the flash store')
    parser.add_argument('--budget', default='96MB', help='DRAM budget (default: %(default)s)')
    parser.add_argument('--mode', choices=MODES, default=EngineConfig.mode,
                        help="as the node's parameter (default: %(default)s)")
    parser.add_argument('--prompt', default='Name the capital of France.',
                        help='what to ask (default: %(default)s)')
    parser.add_argument('--max-tokens', type=int, default=64, metavar='N',
                        help='longest answer in tokens (default: %(default)s)')
    parser.add_argument('--json', type=output_file, metavar='PATH',
                        help='write the figures to this file, too')


def run(arguments: argparse.Namespace) -> int:
    """Return 0 when the prompt was answered, 1 when the node refused, 130 on Ctrl-C."""
    os.environ['ROS_AUTOMATIC_DISCOVERY_RANGE'] = 'LOCALHOST'
    domain = os.getpid() % CLIENT_DOMAINS + 1
    parameters = {'store': str(arguments.store.resolve()), 'memory.dram_budget': arguments.budget,
                  'mode': arguments.mode, 'memory.context_length': CONTEXT}
    try:
        with NodeProcess(parameters, domain) as process:
            try:
                figures = _show(process, domain, arguments)
            except (ConnectionError, TimeoutError) as error:
                raise DemoError(f'{error} Its log:\n{process.log()}') from None
    except DemoError as error:
        print(f'flash_llm demo: {error}', file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print('\nstopped', file=sys.stderr)
        return 130
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(figures, indent=2) + '\n')
    return 0


def _show(
    process: NodeProcess, domain: int, arguments: argparse.Namespace,
) -> dict[str, object]:
    from flash_llm_ros.client.operator import OperatorClient

    print(f'starting the node (process {process.pid}) in ROS domain {domain}', flush=True)
    with OperatorClient(domain_id=domain, give_up=process.has_ended) as client:
        client.wait_for_node(START_TIMEOUT)
        bare = process.memory('VmRSS')
        for label, what in (('configure', 'opening the store and filling the window'),
                            ('activate', 'accepting requests')):
            print(f'{label}: {what}', end=' ', flush=True)
            begin = time.monotonic()
            if not client.transition(label, timeout=None):
                print()
                raise DemoError(_reason(client))
            print(f'({time.monotonic() - begin:.1f} s)', flush=True)
        plan = client.memory_plan()
        print(f'\n> {arguments.prompt}\n')
        result = _answer(client, arguments)
        peak, mode = process.memory('VmHWM'), client.status.mode
    figures = {'prompt': arguments.prompt, 'mode': mode, 'bare_rss': bare, 'peak_rss': peak,
               **_figures(plan, result)}
    _print_cost(figures, plan)
    return figures


def _reason(client: 'OperatorClient') -> str:
    # ~/status is published before the transition's answer, but may arrive after it.
    client.until(lambda: client.status.error.code != 0, 5.0, 'the reason')
    return client.status.error.message


def _answer(client: 'OperatorClient', arguments: argparse.Namespace) -> 'GenerateText.Result':
    from flash_llm_msgs.action import GenerateText

    shown = 0

    def show(chunk: 'TokenChunk') -> None:
        nonlocal shown
        shown += len(chunk.text)
        print(chunk.text, end='', flush=True)

    ask = GenerateText.Goal(prompt=arguments.prompt)
    ask.sampling.max_tokens = max(arguments.max_tokens, 0)
    _, result = client.send_goal(ask, show).result()
    # The last chunks and the result travel on different topics.
    print(result.text[shown:])
    if result.error.code != 0:
        raise DemoError(result.error.message)
    return result


def _figures(
    plan: dict[str, tuple[int, str]], result: 'GenerateText.Result',
) -> dict[str, object]:
    stats = result.stats
    names = [name for name in stats.get_fields_and_field_types() if name != 'seed']
    return {
        'text': result.text,
        'finish_reason': FinishReason(result.finish_reason).name,
        'model_bytes': plan['model on flash'][0], 'budget_bytes': plan['budget'][0],
        'plan': {name: size for name, (size, _) in plan.items() if name not in TOTALS},
        **{name: getattr(stats, name) for name in names}}


def _print_cost(figures: dict[str, object], plan: dict[str, tuple[int, str]]) -> None:
    rows = tuple(PlanRow(name, size, note)
                 for name, (size, note) in plan.items() if name not in TOTALS)
    budget, model = figures['budget_bytes'], figures['model_bytes']
    tokens = max(figures['generated_tokens'], 1)
    touched = figures['window_hits'] + figures['window_misses']
    hit_rate = figures['window_hits'] / max(touched, 1)
    print(f'\nMemory plan\n{MemoryPlan(budget, rows).table()}')
    lines = (
        ('mode', figures['mode']),
        ('model on flash', f'{model / 1e6:.1f} MB, {model / budget:.2f} times the budget'),
        ('tokens', f'{figures["prompt_tokens"]} of the prompt, {figures["generated_tokens"]} '
                   f'of the answer ({figures["finish_reason"]})'),
        ('window', f'{figures["window_hits"]} hits, {figures["window_misses"]} misses '
                   f'({100 * hit_rate:.1f} % hits)'),
        ('read from flash', f'{figures["flash_bytes"] / 1e6:.1f} MB in {figures["flash_reads"]} '
                            f'reads; per token of the answer '
                            f'{figures["flash_bytes"] / tokens / 1e6:.1f} MB in '
                            f'{figures["flash_reads"] / tokens:.0f} reads'),
        ('active neurons', f'{100 * figures["active_fraction"]:.1f} %'),
        ('time to first token', f'{figures["time_to_first_token"]:.2f} s'),
        ('speed', f'{figures["tokens_per_second"]:.2f} tokens/s'),
        ('peak resident set', f'{figures["peak_rss"] / 1e6:.1f} MB, which is '
                              f'{(figures["peak_rss"] - figures["bare_rss"]) / 1e6:.1f} MB more '
                              f'than before the store was opened'),
    )
    print('\nCost')
    for name, text in lines:
        print(f'  {name:<20} {text}')
