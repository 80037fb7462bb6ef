"""A node in its own process and a client of it, for every test that needs ROS."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
import fcntl
import itertools
import os
from pathlib import Path
import signal
import subprocess
import sys
import tempfile
from typing import TYPE_CHECKING, TextIO

import pytest

if TYPE_CHECKING:
    from flash_llm_ros.cli.node_process import NodeProcess
    from flash_llm_ros.client.operator import OperatorClient

BUDGET = '32MB'
EXAMPLES = Path(__file__).parents[2] / 'examples'
START_TIMEOUT = 60.0
INJECTING = (sys.executable, str(Path(__file__).with_name('injecting_node.py')))
_counter = itertools.count(os.getpid() * 7)
DOMAINS = 101
_locks: dict[int, TextIO] = {}


def new_domain() -> int:
    """Return a ROS domain that no other test uses, of this run or of one beside it."""
    for _ in range(DOMAINS):
        domain = next(_counter) % DOMAINS + 1
        if domain in _locks:        # all have been used: begin again
            return domain
        file = Path(tempfile.gettempdir(), f'flash_llm_ros_domain_{domain}').open('w')  # noqa: SIM115
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            continue
        _locks[domain] = file       # until this process ends
        return domain
    raise RuntimeError('Other test runs use every ROS domain.')


@dataclass
class RunningNode:
    """A node in the unconfigured state."""

    process: 'NodeProcess'
    client: 'OperatorClient'
    domain: int

    def activate(self) -> 'RunningNode':
        """Configure and activate."""
        assert self.client.transition('configure'), self.process.log()
        assert self.client.transition('activate'), self.process.log()
        return self


@contextmanager
def running_node(
    store: Path | str, *, environment: dict[str, str] | None = None,
    command: tuple[str, ...] = INJECTING, ends_with: int = 0, name: str = 'flash_llm',
    **parameters: object,
) -> Iterator[RunningNode]:
    """Start a node; it has to end with this exit code, without a traceback that was not planted.

    Parameters are named without their groups.
    """
    from flash_llm_ros.cli.node_process import NodeProcess
    from flash_llm_ros.client.operator import OperatorClient
    from flash_llm_ros.node.parameters import RENAMED

    os.environ['ROS_AUTOMATIC_DISCOVERY_RANGE'] = 'LOCALHOST'
    domain = new_domain()
    settings = {RENAMED.get(name, name): value for name, value in {
        'store': str(store), 'dram_budget': BUDGET, **parameters}.items()}
    process = NodeProcess(settings, domain, command=command, environment={
        # A panic's backtrace takes 50 MB.
        'PYTHONPATH': os.pathsep.join(sys.path), 'RUST_BACKTRACE': '0', **(environment or {})})
    try:
        with OperatorClient(name, domain_id=domain, give_up=process.has_ended) as client:
            client.wait_for_node(START_TIMEOUT)
            yield RunningNode(process, client, domain)
    finally:
        log = process.log()
        print(log)
        code = process.stop()
    assert code == ends_with, log
    assert log.count('Traceback') == log.count('planted') // 2, log


@contextmanager
def example(name: str, node: RunningNode, end: signal.Signals = signal.SIGINT,
            **parameters: object) -> Iterator[subprocess.Popen]:
    """Run an example beside a node; it has to end by the signal, without a traceback."""
    graph, own = node.client.node, Path(name).stem
    node.client.until(lambda: own not in graph.get_node_names(), START_TIMEOUT,
                      'the end of the example before')
    settings = [part for key, value in parameters.items() for part in ('-p', f'{key}:={value}')]
    process = subprocess.Popen(
        [sys.executable, str(EXAMPLES / name), '--ros-args', *settings],
        env={**os.environ, 'ROS_DOMAIN_ID': str(node.domain), 'PYTHONPATH': ':'.join(sys.path)},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        yield process
    finally:
        process.send_signal(end)
        log, _ = process.communicate(timeout=START_TIMEOUT)
        print(log)
    assert process.returncode == 0 and 'Traceback' not in log, log


@pytest.fixture(scope='module')
def active_node(int8_store: Path) -> Iterator[RunningNode]:
    """An active node for a whole file; tests must leave it active and idle."""
    with running_node(int8_store) as node:
        yield node.activate()
