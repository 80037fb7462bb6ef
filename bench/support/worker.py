"""A module of bench/ run in a process of its own, in a memory cgroup or not, and its figures."""

from collections.abc import Sequence
import json
import os
from pathlib import Path
import subprocess
import sys
from typing import Any

from bench.support.memory_cgroup import memory_cgroup
from bench.support.page_cache import cached_bytes, drop

ROOT = Path(__file__).parents[2]
_DROP_CACHES = Path('/proc/sys/vm/drop_caches')


def bare_bytes(module: str) -> int:
    """Resident bytes of the interpreter with the module's imports."""
    return run_worker(module, {'bare': True})['bare']


def run_worker(module: str, job: dict[str, Any], groups: Sequence[Path] = (),
               timeout: float = 600.0) -> dict[str, Any]:
    """The JSON of the last line that the module prints; its argument is the job as JSON.

    It is in the cgroups of `groups` from its first instruction on. RuntimeError says how it
    failed.
    """
    command = [sys.executable, '-m', module, json.dumps(job)]
    # The shell joins the groups before it becomes the worker, so that every page counts.
    join = [f'echo $$ > {group}/cgroup.procs &&' for group in groups]
    command = ['sh', '-c', ' '.join([*join, 'exec "$@"']), 'sh', *command]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False,
                              timeout=timeout, cwd=ROOT)
    except subprocess.TimeoutExpired:
        raise RuntimeError(f'not done after {timeout:.0f} s') from None
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ['no message'])[-1]
        raise RuntimeError(f'ended with {done.returncode}: {reason}')
    return json.loads(done.stdout.splitlines()[-1])


def run_capped(module: str, job: dict[str, Any], cap: int, timeout: float = 600.0,
               groups: Sequence[Path] = ()) -> dict[str, Any]:
    """The worker's figures, or {'failed': what happened}; adds 'oom_kills'.

    `cap` limits all memory of the process, page cache included, in bytes; `groups`: other cgroups
    that it is in.
    """
    with memory_cgroup() as group:
        group.limit(cap)
        try:
            found = run_worker(module, job, [group.path, *groups], timeout)
        except RuntimeError as error:
            found = {'failed': str(error)}
        kills = group.oom_kills()
    if kills:
        found = {'failed': 'killed for want of memory'}
    return {**found, 'oom_kills': kills}


def drop_from_page_cache(path: Path) -> int:
    """Bytes of the file or folder that stay in the page cache all the same."""
    drop(path)
    left = cached_bytes(path)
    if left and os.access(_DROP_CACHES, os.W_OK):
        os.sync()
        _DROP_CACHES.write_text('1')
        left = cached_bytes(path)
    return left
