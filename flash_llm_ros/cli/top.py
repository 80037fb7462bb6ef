"""`flash_llm top`: the running node on one screen, or a line for each of several."""

from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager
import json
import time
from typing import TYPE_CHECKING, Any

from rich.console import Console, RenderableType
from rich.live import Live

from flash_llm_ros.cli.main import fail
from flash_llm_ros.cli.seconds import seconds
from flash_llm_ros.cli.top_screen import Snapshot, fleet_screen, screen

if TYPE_CHECKING:
    from flash_llm_msgs.msg import EngineStatus
    from flash_llm_ros.client.operator import OperatorClient
    from flash_llm_ros.client.seen_nodes import SeenNode

EPILOG = """\
examples:
  flash_llm top                                    until Ctrl-C; of several nodes, a line each
  flash_llm top --node /robot/flash_llm
  flash_llm top --once                             one screen, for a log
  flash_llm top --json | jq .status.tokens_per_second

It only listens to ~/status and /diagnostics and costs the node nothing.
"""
PERIOD = 0.25   # s
SETTLED = 1.0   # s after the first node in which others are found
DIAGNOSTICS_TIMEOUT = 5.0   # s
LEVELS = ('OK', 'WARN', 'ERROR', 'STALE')


def add_arguments(parser: ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument('--node', metavar='NAME',
                        help='with its namespace (default: all that are there)')
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
        name = options.node
        if name is None:
            with _all_nodes() as nodes:
                if not _has_come(lambda: any(node.status for node in nodes.values()),
                                 options.timeout):
                    return fail(TimeoutError(
                        f'No node was found within {options.timeout:g} s. Is it running, and in '
                        'the same ROS_DOMAIN_ID?'))
                time.sleep(SETTLED)
                if len(nodes) > 1:
                    _show(options, lambda whole: fleet_screen(_heard(nodes)),
                          lambda: {'nodes': [{'node': node.name, 'status': _plain(node.status)}
                                             for node in _heard(nodes)]})
                    return 0
                name, = nodes
        with OperatorClient(name) as client:
            if not _has_come(lambda: bool(client.statuses), options.timeout):
                return fail(TimeoutError(not_found(client.name, options.timeout, client.node)))
            client.until(lambda: bool(client.diagnostics), DIAGNOSTICS_TIMEOUT, '/diagnostics')
            _show(options, lambda whole: screen(snapshot(client), whole),
                  lambda: _facts(client))
    except (TimeoutError, ValueError) as error:
        return fail(error)
    return 0


@contextmanager
def _all_nodes() -> Iterator[dict[str, 'SeenNode']]:
    """Every node in the ROS graph, as it comes."""
    from flash_llm_ros.client.own_node import OwnNode
    from flash_llm_ros.client.seen_nodes import SeenNodes

    own = OwnNode('flash_llm_top')
    try:
        seen = SeenNodes(own.node)
        own.node.create_timer(PERIOD, seen.look)
        yield seen.nodes
    finally:
        own.stop()
        own.destroy()


def _heard(nodes: dict[str, 'SeenNode']) -> list['SeenNode']:
    """Those that have said something, by name."""
    return [node for _, node in sorted(nodes.items()) if node.status]


def _has_come(condition: Callable[[], bool], timeout: float) -> bool:
    limit = time.monotonic() + timeout
    while not condition() and time.monotonic() < limit:
        time.sleep(PERIOD / 10)
    return condition()


def _show(options: Namespace, draw: Callable[[bool], RenderableType],
          facts: Callable[[], dict[str, Any]]) -> None:
    if options.json:
        print(json.dumps(facts(), indent=2))
    elif options.once:
        Console().print(draw(True))
    else:
        with Live(screen=True, auto_refresh=False) as live:
            while True:
                live.update(draw(False), refresh=True)
                time.sleep(PERIOD)


def snapshot(client: 'OperatorClient') -> Snapshot:
    """Return what the node said last, as plain values."""
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
    return Snapshot(client.name, age, _values(client.status), parts, history)


def _values(status: 'EngineStatus') -> dict[str, Any]:
    """A status as plain values."""
    from flash_llm_ros.client.seen_nodes import STATES

    values = {name: getattr(status, name) for name in status.get_fields_and_field_types()}
    return values | {'stamp': status.stamp.sec + status.stamp.nanosec / 1e9,
                     'state': STATES[status.state], 'error': status.error.message}


def _plain(status: 'EngineStatus') -> dict[str, Any]:
    # NaN is no JSON.
    return {name: None if value != value else value for name, value in _values(status).items()}


def _facts(client: 'OperatorClient') -> dict[str, Any]:
    return {'node': client.name, 'status': _plain(client.status),
            'diagnostics': {part: {'level': level, 'message': text, 'values': values}
                            for part, (level, text, values) in snapshot(client).parts.items()}}
