"""`flash_llm serve`: OpenAI's chat completions in front of the running node, or of all of them."""

from argparse import ArgumentParser, Namespace
import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
import ipaddress
import signal
from typing import TYPE_CHECKING

from flash_llm_ros.cli.main import fail, warn
from flash_llm_ros.cli.seconds import seconds
from flash_llm_ros.cli.whole_number import whole_number

if TYPE_CHECKING:
    from flash_llm_ros.serve.server import ChatServer, Limits

EPILOG = """\
examples:
  flash_llm serve                                  at http://127.0.0.1:8080/v1
  flash_llm serve --node /robot/flash_llm --port 9000
  flash_llm serve --fleet                          by every node, each request by the quickest
  flash_llm serve --host 0.0.0.0 --name robot.local
                                                   for the whole network: there is no password

Programs for OpenAI's interface work with it: set their base URL, and any API key. It needs
`pip install 'flash_llm_ros[serve]'`. Ctrl-C ends it.
"""


def add_arguments(parser: ArgumentParser) -> None:
    """Declare the arguments."""
    who = parser.add_mutually_exclusive_group()
    who.add_argument('--node', default='flash_llm', metavar='NAME',
                     help='with its namespace (default: flash_llm)')
    who.add_argument('--fleet', action='store_true',
                     help='every node in the ROS graph that has the model of a request')
    parser.add_argument('--host', type=ipaddress.ip_address, default='127.0.0.1',
                        metavar='ADDRESS',
                        help='to listen at (default: 127.0.0.1, which only this machine reaches)')
    parser.add_argument('--port', type=whole_number(0, 65535), default=8080, metavar='N',
                        help='to listen at; 0: any that is free (default: 8080)')
    parser.add_argument('--name', action='append', default=[], metavar='HOST',
                        help='that clients call this machine by, beside localhost and addresses '
                        '(may be given several times)')
    parser.add_argument('--deadline', type=seconds, default=120.0, metavar='S',
                        help='seconds until an answer ends as it is (default: 120)')
    parser.add_argument('--max-requests', type=whole_number(1), default=8, metavar='N',
                        help='under way at once; more are refused (default: 8)')


def run(options: Namespace) -> int:
    """Serve until SIGTERM, then return 0; 1 where it cannot."""
    try:
        import flash_llm_ros.client  # noqa: F401
    except ImportError as error:
        return fail(ImportError(f'ROS 2 is not there ({error.name}); source it first'))
    try:
        from flash_llm_ros.serve.server import Limits
    except ImportError as error:
        return fail(ImportError(f'{error.name} is not there: pip install "flash_llm_ros[serve]"'))
    limits = Limits(tuple(name.lower() for name in options.name), options.max_requests,
                    options.deadline)
    try:
        with _by_fleet(limits) if options.fleet else _by_node(options.node, limits) as server:
            asyncio.run(_serve(server, options))
    except (OSError, OverflowError, ValueError) as error:
        return fail(error)
    return 0


@contextmanager
def _by_fleet(limits: 'Limits') -> Iterator['ChatServer']:
    from flash_llm_ros.client import FlashLlmFleet
    from flash_llm_ros.serve.server import ChatServer

    with FlashLlmFleet() as fleet:
        yield ChatServer(fleet.start, lambda: sorted(
            {status.model for status in fleet.statuses().values()}), limits)


@contextmanager
def _by_node(name: str, limits: 'Limits') -> Iterator['ChatServer']:
    from flash_llm_ros.client import FlashLlmClient
    from flash_llm_ros.client.own_node import OwnNode
    from flash_llm_ros.client.seen_nodes import SeenNodes
    from flash_llm_ros.serve.server import ChatServer

    own = OwnNode('flash_llm_serve')
    try:
        with FlashLlmClient(name, node=own.node) as client:
            seen = SeenNodes(own.node, [client.name])
            seen.look()
            node = seen.nodes[client.name]
            yield ChatServer(lambda model, **options: client.start(**options),
                             lambda: [node.status.model] if node.is_active else [], limits)
    finally:
        own.stop()
        own.destroy()


async def _serve(server: 'ChatServer', options: Namespace) -> None:
    ended = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
    async with server.listening(str(options.host), options.port) as url:
        if not options.host.is_loopback:
            warn('whoever reaches this address may use the node: there is no password')
        print(f'{"all nodes" if options.fleet else options.node} at {url}', flush=True)
        await ended.wait()
