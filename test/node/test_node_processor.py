"""Cores and processor time that are taken from a node and given back while it answers."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
import os
from pathlib import Path
import re
import time
import uuid

import pytest
from ros_fixtures import running_node
from ros_parameters import set_parameter
from test_node_lifecycle import refused
from test_node_requests import goal

from flash_llm_ros.engine import FinishReason
from flash_llm_ros.store.errors import ErrorCode

pytestmark = pytest.mark.ros
GROUPS = (('/sys/fs/cgroup/cpu', 'cpu.cfs_quota_us', '{}', '-1'),
          ('/sys/fs/cgroup', 'cpu.max', '{} 100000', 'max'))
ALL = os.sched_getaffinity(0)


@contextmanager
def processor_quota(pid: int) -> Iterator[Callable[[float | None], object]]:
    """What limits a process to a share of a core, None: to nothing; it does nothing where the
    machine has no cgroup for that, or one that is not ours."""
    for root, file, some, everything in GROUPS:
        group = Path(root) / f'flash_llm_{uuid.uuid4().hex[:12]}'
        try:
            group.mkdir()
        except OSError:
            continue
        try:
            if (limit := group / file).exists():
                (group / 'cgroup.procs').write_text(str(pid))
                try:
                    yield partial(set_quota, limit, some, everything)
                finally:
                    with suppress(ProcessLookupError):
                        (Path(root) / 'cgroup.procs').write_text(str(pid))
                return
        finally:
            group.rmdir()
    yield lambda share: None


def set_quota(limit: Path, some: str, everything: str, share: float | None) -> None:
    limit.write_text(everything if share is None else some.format(int(share * 100_000)))


def pin(pid: int, cores: set[int]) -> None:
    for task in Path(f'/proc/{pid}/task').iterdir():
        try:
            os.sched_setaffinity(int(task.name), cores)
        except ProcessLookupError:      # it has ended meanwhile
            continue


def test_answers_stay_the_same_and_nothing_is_said_to_stand_still(int8_store):
    with running_node(int8_store, threads=2) as node:
        client, pid = node.activate().client, node.process.pid

        def start():
            return client.send_goal(goal('Tell me of your day.', 300))

        def text_of(run):
            _, result = run.result(300)
            assert result.finish_reason == FinishReason.LENGTH, result.error
            return result.text

        expected = text_of(start())
        with processor_quota(pid) as quota:
            for share in (0.05, 0.3):
                run = start()
                for cores in ({min(ALL)}, {max(ALL)}, ALL) * 5:
                    pin(pid, cores)
                    quota(share)
                    time.sleep(0.02)
                    quota(None)
                assert text_of(run) == expected
            # All of a life cycle, with a window that is filled with less than the one before.
            quota(0.1)
            pin(pid, {min(ALL)})
            for transition in ('deactivate', 'cleanup'):
                assert client.transition(transition)
            assert set_parameter(client, 'memory.dram_budget', '1MB') == ''
            least = re.search(r'at least ([\d.]+) MB', refused(node, ErrorCode.BUDGET_TOO_SMALL))
            budget = f'{float(least.group(1)) + 0.1}MB'
            assert set_parameter(client, 'memory.dram_budget', budget) == ''
            node.activate()
            seen = len(client.diagnostics)
            assert text_of(start()) == expected
            quota(None)
            pin(pid, ALL)
        assert text_of(start()) == expected
        client.until(lambda: len(client.diagnostics) > seen, 30, 'diagnostics')
        assert {status.level for array in client.diagnostics[seen:] for status in array.status
                if status.name.endswith(': engine')} == {b'\0'}
