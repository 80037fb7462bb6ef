"""`flash_llm replay`: the prompts of a bag through a running node, as a regression test."""

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, astuple, dataclass
import difflib
import json
from pathlib import Path
import sys
from typing import TYPE_CHECKING

from flash_llm_ros.cli.bag import (
    STRING,
    BagError,
    BagWriter,
    read_answers,
    read_strings,
    write_bag,
)
from flash_llm_ros.cli.output_path import output_file, output_folder
from flash_llm_ros.cli.seconds import seconds

if TYPE_CHECKING:
    from flash_llm_ros.client.operator import OperatorClient

EPILOG = """\
examples:
  flash_llm replay mission_bag --expect mission_bag            the same answers as recorded?
  flash_llm replay mission_bag --record new_bag --node /robot/flash_llm

A refusal is an answer to be expected, too: by its code, from a file written by --json or a
bag that holds ~/stream (as --record writes it).

exit codes: 0 all answers are there, or as expected; 1 one differs or is missing,
2 nothing could be replayed, 130 interrupted
"""
START_TIMEOUT = 30.0  # s
ANSWERED = ('STOP', 'LENGTH')
TIMEOUT = 'TIMEOUT'     # in the place of a reason: nothing came


@dataclass(frozen=True)
class Exchange:
    """A prompt and what came back; ``response`` is empty unless the answer was finished.

    ``finish_reason`` and ``error`` are names of TokenChunk's and EngineError's constants.
    """

    prompt: str
    response: str
    finish_reason: str
    error: str = ''

    @property
    def refusal(self) -> str:
        """Why there is no answer; '' where there is one."""
        if self.finish_reason in ANSWERED:
            return ''
        return f'{self.finish_reason} ({self.error})' if self.error else self.finish_reason


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument('bag', type=Path, help='rosbag2 folder, sqlite3 or mcap')
    parser.add_argument('--topic', help='topic of the prompts (default: ~/prompt of the node)')
    parser.add_argument('--node', default='flash_llm', metavar='NAME',
                        help='running node, with its namespace (default: %(default)s)')
    parser.add_argument('--expect', type=Path, metavar='BAG_OR_JSON',
                        help='answers to compare with: a bag with ~/response of the node, or a '
                             'file written by --json')
    parser.add_argument('--record', type=output_folder, metavar='BAG',
                        help='write prompts, answers, chunks and the last status to a new bag')
    parser.add_argument('--json', type=output_file, metavar='FILE',
                        help='write the exchanges to FILE')
    parser.add_argument('--timeout', type=seconds, default=600.0, metavar='S',
                        help='longest wait for an answer in seconds (default: %(default)s)')


def run(arguments: argparse.Namespace) -> int:
    """Return 0, 1 where an answer differs or is missing, 2 where nothing could be replayed."""
    try:
        return _replay(arguments)
    except (BagError, TimeoutError, ValueError) as error:
        print(f'flash_llm replay: {error}', file=sys.stderr)
        return 2


def _replay(arguments: argparse.Namespace) -> int:
    node = '/' + arguments.node.strip('/')
    prompts = read_strings(arguments.bag, arguments.topic or f'{node}/prompt')
    if not prompts:
        raise BagError(f'{arguments.bag} holds no prompts')
    expected = None
    if arguments.expect is not None:
        expected = _expected(arguments.expect, node)
        if len(expected) != len(prompts):
            raise BagError(f'{arguments.expect} holds {len(expected)} answers, but the bag holds '
                           f'{len(prompts)} prompts; refusals have their place where ~/stream was '
                           'recorded, too')
    exchanges = _exchange(arguments, node, prompts)
    if arguments.json is not None:
        arguments.json.write_text(
            json.dumps([asdict(exchange) for exchange in exchanges], indent=2) + '\n')
    for index, exchange in enumerate(exchanges):
        if exchange.refusal:
            print(f'prompt {index + 1} has no answer: {exchange.refusal}', file=sys.stderr)
    if expected is None:
        return int(any(exchange.refusal for exchange in exchanges))
    return _compare(exchanges, expected)


def _exchange(arguments: argparse.Namespace, node: str, prompts: list[str]) -> list[Exchange]:
    # rclpy is not needed before this, and a bad bag should be told at once.
    from flash_llm_ros.client.operator import OperatorClient
    from flash_llm_ros.finish_reason import FinishReason
    from flash_llm_ros.store.errors import ErrorCode

    exchanges = []
    with _recorder(arguments.record, node) as record, OperatorClient(node) as client:
        client.wait_for_node(START_TIMEOUT)
        for index, prompt in enumerate(prompts):
            try:
                reply = client.ask(prompt, arguments.timeout)
            except TimeoutError as error:       # what comes late would be taken for the next one's
                print(f'flash_llm replay: {error}', file=sys.stderr)
                break
            code = ErrorCode(reply.error.code)
            exchange = Exchange(prompt, reply.text, FinishReason(reply.finish_reason).name,
                                code.name if code else '')
            exchanges.append(exchange)
            print(f'[{index + 1}/{len(prompts)}] > {prompt}\n'
                  f'{exchange.response or exchange.refusal}\n', flush=True)
            record(client, exchange)
    return exchanges + [Exchange(prompt, '', TIMEOUT) for prompt in prompts[len(exchanges):]]


class _Recorder:
    """Writes what went over the topics of the node."""

    def __init__(self, bag: BagWriter, node: str) -> None:
        self._bag = bag
        self._node = node

    def __call__(self, client: 'OperatorClient', exchange: Exchange) -> None:
        from std_msgs.msg import String

        self._add('prompt', STRING, String(data=exchange.prompt))
        for chunk in client.last_chunks:
            self._add('stream', 'flash_llm_msgs/msg/TokenChunk', chunk)
        if exchange.finish_reason in ANSWERED:
            self._add('response', STRING, String(data=exchange.response))
        self._add('status', 'flash_llm_msgs/msg/EngineStatus', client.status)

    def _add(self, topic: str, message_type: str, message: object) -> None:
        from rclpy.serialization import serialize_message

        self._bag.add(f'{self._node}/{topic}', message_type, serialize_message(message))


@contextmanager
def _recorder(path: Path | None, node: str) -> 'Iterator[_Recorder]':
    if path is None:
        yield lambda client, exchange: None
        return
    with write_bag(path) as bag:
        yield _Recorder(bag, node)


def _expected(source: Path, node: str) -> list[Exchange]:
    from flash_llm_ros.finish_reason import FinishReason
    from flash_llm_ros.store.errors import ErrorCode

    if source.is_dir():
        return [Exchange('', answer.text, FinishReason(answer.finish_reason).name,
                         ErrorCode(answer.code).name if answer.code else '')
                for answer in read_answers(source, node)]
    try:
        found = [Exchange(**entry) for entry in json.loads(source.read_text())]
        if not all(isinstance(field, str) for each in found for field in astuple(each)):
            raise TypeError('it has a field that is no text')
        return found
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise BagError(f'{source} is neither a bag nor a file written by --json: '
                       f'{error}') from None


def _compare(exchanges: list[Exchange], expected: list[Exchange]) -> int:
    different = 0
    for index, (exchange, wanted) in enumerate(zip(exchanges, expected, strict=True)):
        if (exchange.response, exchange.refusal) == (wanted.response, wanted.refusal):
            continue
        different += 1
        sys.stdout.writelines(f'{line}\n' for line in difflib.unified_diff(
            _visible(wanted), _visible(exchange),
            f'expected answer to prompt {index + 1}', f'answer to prompt {index + 1}',
            lineterm=''))
    print(f'{len(expected) - different} of {len(expected)} answers are the same')
    return 1 if different else 0


def _visible(exchange: Exchange) -> list[str]:
    if exchange.refusal:
        return [f'no answer: {exchange.refusal}']
    # A diff of the bare lines would hide a changed space or line end.
    return [repr(line) for line in exchange.response.splitlines(keepends=True)]
