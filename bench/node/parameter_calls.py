"""How long do calls of get_parameters take while the node is idle, reads long prompts, generates,
answers by a schema, or waits for a slow flash, beside the same calls to a bare rclpy node?

Both nodes are called in turns by one client, so that a busy machine counts for both. The slow flash
is a library before libc that lets every read wait (bench/faults/shims/; needs `cc`).
"""

from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
import os
from pathlib import Path
import sys
import tempfile
import threading
import time

from rcl_interfaces.srv import GetParameters

from bench.faults.shim_library import build_shims
from bench.node import bare_node
from bench.node.executor_jitter import LONG_PROMPT, STORE
from bench.support.command import Report, at_least, command, run, show
from flash_llm_msgs.action import GenerateText
from flash_llm_msgs.msg import OutputConstraint
from flash_llm_ros.cli.node_process import NodeProcess
from flash_llm_ros.client.operator import OperatorClient

BARE = (sys.executable, bare_node.__file__)
MOST_P99 = 100.0        # ms beside the bare node's
READ_DELAY = 20_000     # us that a read of the slow flash waits at most
SCHEMA = '{"type": "array", "items": {"type": "integer"}, "minItems": 200}'
LONGEST = 120.0         # s
NAMES = ['memory.dram_budget', 'requests.queue_size']


def goal_of(phase: str) -> GenerateText.Goal:
    goal = GenerateText.Goal(prompt='Tell a long story.')
    goal.sampling.max_tokens = 400
    if phase == 'prefill':
        goal.prompt, goal.sampling.max_tokens = LONG_PROMPT, 1
    elif phase == 'constrained':
        goal.constraint = OutputConstraint(kind=OutputConstraint.JSON_SCHEMA, text=SCHEMA)
    return goal


@contextmanager
def busy(client: OperatorClient, phase: str) -> Iterator[None]:
    """Keep the node at one kind of work."""
    over = threading.Event()

    def work() -> None:
        while not over.is_set():
            goal = client.send_goal(goal_of(phase))
            while not (goal.done or over.is_set()):
                time.sleep(0.02)
            goal.cancel()
            goal.result(LONGEST)

    worker = threading.Thread(target=work)
    if phase != 'idle':
        worker.start()
        client.until(lambda: client.status.state > client.status.IDLE, LONGEST, 'work')
    try:
        yield
    finally:
        over.set()
        if phase != 'idle':
            worker.join()


def caller(client: OperatorClient) -> Callable[[], float]:
    """A function that calls once and returns the milliseconds until the answer."""
    service = client.node.create_client(GetParameters, f'{client.name}/get_parameters')
    client.until(service.service_is_ready, LONGEST, 'get_parameters')

    def call() -> float:
        begin = time.monotonic()
        answer = client.call(service, GetParameters.Request(names=NAMES))
        assert len(answer.values) == len(NAMES)
        return 1000 * (time.monotonic() - begin)
    return call


def times(options: Namespace, slow_flash: bool) -> dict[str, dict[str, list[float]]]:
    """The milliseconds of every call, by phase and node."""
    domain = os.getpid() % 101 + 1
    parameters = {'store': str(options.store), 'memory.dram_budget': options.budget,
                  'autostart': True, 'requests.structured': True,
                  'compute.threads': options.threads}
    found: dict[str, dict[str, list[float]]] = {}
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        slow = {'LD_PRELOAD': str(build_shims(Path(folder))),
                'DELAYS': str(READ_DELAY)} if slow_flash else {}
        start = stack.enter_context
        node = start(NodeProcess(parameters, domain, environment=slow))
        start(NodeProcess({}, domain % 101 + 1, command=BARE))
        client = start(OperatorClient(domain_id=domain, give_up=node.has_ended))
        client.wait_for_node(LONGEST)
        client.until(lambda: client.status.state == client.status.IDLE, LONGEST, 'a store')
        calls = {'node': caller(client),
                 'bare': caller(start(OperatorClient(domain_id=domain % 101 + 1)))}
        for phase in ('slow flash',) if slow_flash else (
                'idle', 'prefill', 'decode', 'constrained'):
            with busy(client, phase):
                turns = [(name, call()) for _ in range(options.calls)
                         for name, call in calls.items()]
            found[phase] = {name: sorted(time for each, time in turns if each == name)
                            for name in calls}
    return found


def percentile(ordered: list[float], share: float) -> float:
    return ordered[int(share * (len(ordered) - 1))]


def measure(options: Namespace) -> Report:
    found = times(options, slow_flash=False) | times(options, slow_flash=True)
    show(('ms', *(f'{name} {part}' for name in ('node', 'bare')
                  for part in ('p50', 'p99', 'most'))),
         [(phase, *(f'{percentile(by_node[name], share):.1f}' for name in ('node', 'bare')
                    for share in (0.5, 0.99, 1.0))) for phase, by_node in found.items()],
         f'{options.calls} calls of each')
    beside = {phase: percentile(by_node['node'], 0.99) - percentile(by_node['bare'], 0.99)
              for phase, by_node in found.items()}
    return Report(found, 'get_parameters, p99 beside the bare node: ' + ', '.join(
        f'{phase} {more:+.1f} ms' for phase, more in beside.items()),
        max(beside.values()) > MOST_P99)


def parser() -> ArgumentParser:
    result = command(__doc__)
    result.add_argument('--store', type=Path, default=STORE, help='default: %(default)s')
    result.add_argument('--budget', default='140MB')
    result.add_argument('--calls', type=at_least(1), default=300, help='of each node and phase')
    result.add_argument('--threads', type=at_least(1), default=1, help='that compute')
    return result


if __name__ == '__main__':
    sys.exit(run(parser(), measure))
