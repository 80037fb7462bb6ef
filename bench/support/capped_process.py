"""One measured process inside of a memory cgroup, and what became of it."""

import json
import os
from pathlib import Path
import subprocess
from typing import Any

from bench.support.memory_cgroup import MemoryCgroup, memory_cgroup
from bench.support.page_cache import cached_bytes, drop

_DROP_CACHES = Path('/proc/sys/vm/drop_caches')


def bare_bytes(interpreter: str, worker: Path) -> dict[str, Any]:
    """{'bare': resident bytes of the interpreter with the worker's imports, ...}."""
    done = _run([interpreter, str(worker), json.dumps({'bare': True})], None, timeout=120)
    if done.returncode:
        raise RuntimeError(f'{interpreter} {worker.name}: {done.stderr.strip()}')
    return json.loads(done.stdout.splitlines()[-1])


def run_capped(interpreter: str, worker: Path, job: dict[str, Any], cap: int,
               timeout: float) -> dict[str, Any]:
    """The worker's figures, or {'refused': sentence}, {'failed': what happened}.

    `cap` limits all memory of the process, page cache included, in bytes. Adds 'oom_kills'.
    """
    command = [interpreter, str(worker), json.dumps({**job, 'bare': False})]
    with memory_cgroup() as group:
        group.limit(cap)
        try:
            done = _run(command, group, timeout)
        except subprocess.TimeoutExpired:
            return {'failed': f'not done after {timeout:.0f} s', 'oom_kills': group.oom_kills()}
        kills = group.oom_kills()
    if kills:
        return {'failed': 'killed for want of memory', 'oom_kills': kills}
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ['no message'])[-1]
        return {'failed': f'ended with {done.returncode}: {reason}', 'oom_kills': 0}
    return {**json.loads(done.stdout.splitlines()[-1]), 'oom_kills': 0}


def drop_from_page_cache(path: Path) -> int:
    """Bytes of the file or folder that stay in the page cache all the same."""
    drop(path)
    left = cached_bytes(path)
    if left and os.access(_DROP_CACHES, os.W_OK):
        os.sync()
        _DROP_CACHES.write_text('1')
        left = cached_bytes(path)
    return left


def _run(command: list[str], group: MemoryCgroup | None,
         timeout: float) -> subprocess.CompletedProcess:
    if group is not None:
        # The shell joins the group before it becomes the worker, so that every page counts.
        join = f'echo $$ > {group.path}/cgroup.procs && exec "$@"'
        command = ['sh', '-c', join, 'sh', *command]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=timeout)
