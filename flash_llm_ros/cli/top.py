"""`flash_llm top`: the running node on one screen."""

from argparse import ArgumentParser, Namespace
import json
import time
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.live import Live

from flash_llm_ros.cli.main import fail
from flash_llm_ros.cli.seconds import seconds
from flash_llm_ros.cli.top_screen import Snapshot, screen

if TYPE_CHECKING:
    from flash_llm_ros.client.operator import OperatorClient

EPILOG = """\
examples:
  flash_llm top                                    until Ctrl-C
  flash_llm top --node /robot/flash_llm
  flash_llm top --once                             one screen, for a log
  flash_llm top --json | jq .status.tokens_per_second

It only listens to ~/status and /diagnostics and costs the node nothing.
"""
PERIOD = 0.25   # s
DIAGNOSTICS_TIMEOUT = 5.0   # s
LEVELS = ('OK', 'WARN', 'ERROR', 'STALE')


def add_arguments(parser: ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument('--node', default='flash_llm', metavar='NAME',
                        help='with its namespace (default: flash_llm)')
    parser.add_argument('--timeout', type=seconds, default=10.0, metavar='S',
                        help='seconds to wait for the node (default: 10)')
    parser.add_argument('--once', action='store_true', help='print one screen and end')
    parser.add_argument('--json', action='store_true', help='print one reading as JSON and end')


def run(options: Namespace) -> int:
    """Return 0, or 1 where no node is found."""
    try:
        from flash_llm_ros.client.nodes_there import not_found
        from flash_llm_ros.client.operator import OperatorClient
    except ImportError as error:
        return fail(ImportError(f'ROS 2 is not there ({error.name}); source it first'))
    try:
        with OperatorClient(options.node) as client:
            try:
                client.until(lambda: bool(client.statuses), options.timeout, '~/status')
            except TimeoutError:
                return fail(TimeoutError(not_found(client.name, options.timeout, client.node)))
            client.until(lambda: bool(client.diagnostics), DIAGNOSTICS_TIMEOUT, '/diagnostics')
            if options.json:
                print(json.dumps(_facts(snapshot(client)), indent=2))
            elif options.once:
                Console().print(screen(snapshot(client)))
            else:
                _watch(client)
    except (TimeoutError, ValueError) as error:
        return fail(error)
    return 0


def _watch(client: 'OperatorClient') -> None:
    with Live(screen=True, auto_refresh=False) as live:
        while True:
            live.update(screen(snapshot(client), whole=False), refresh=True)
            time.sleep(PERIOD)


def snapshot(client: 'OperatorClient') -> Snapshot:
    """Return what the node said last, as plain values."""
    status = client.status
    values = {name: getattr(status, name) for name in status.get_fields_and_field_types()}
    values |= {'stamp': status.stamp.sec + status.stamp.nanosec / 1e9,
               'state': _state_name(status), 'error': status.error.message}
    parts = {}
    for entry in client.diagnostics[-1].status:
        if entry.hardware_id == client.name:
            parts[entry.name.partition(': ')[2]] = (
                LEVELS[entry.level[0]], entry.message,
                {value.key: value.value for value in entry.values})
    history = tuple((entry.tokens_per_second, entry.flash_bytes_per_second)
                    for entry in client.statuses[-60:])
    # Not by its stamp, which may be a simulation's.
    age = time.monotonic() - client.status_at
    return Snapshot(client.name, age, values, parts, history)


def _state_name(status: object) -> str:
    names = ('UNCONFIGURED', 'INACTIVE', 'IDLE', 'PREFILL', 'GENERATING')
    return next(name.lower() for name in names if getattr(status, name) == status.state)


def _facts(shown: Snapshot) -> dict[str, Any]:
    # NaN is no JSON.
    status = {name: None if value != value else value for name, value in shown.status.items()}
    return {'node': shown.node, 'status': status,
            'diagnostics': {part: {'level': level, 'message': text, 'values': values}
                            for part, (level, text, values) in shown.parts.items()}}
