"""What a machine offers a language model: board, memory, flash, ROS."""

from dataclasses import dataclass
from importlib.util import find_spec
import os
from pathlib import Path
import platform
import resource
import time

import numpy as np

_MODELS = ('/proc/device-tree/model', '/sys/class/dmi/id/product_name')
_CGROUP_MOST = Path('/sys/fs/cgroup/memory.max')
_SWEEP_BYTES = 128 << 20    # more than most caches hold


@dataclass(frozen=True)
class Machine:
    """Sizes in bytes; `memory_rate` is what one thread reads, in bytes a second."""

    board: str
    processors: int
    memory: int
    free: int
    lockable: int | None        # None: no limit
    memory_rate: float
    ros: str                    # '' where there is none

    @classmethod
    def here(cls) -> 'Machine':
        """Look at this machine; a second."""
        memory, free = _memory()
        limit = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
        return cls(_board(), len(os.sched_getaffinity(0)), memory, free,
                   None if limit == resource.RLIM_INFINITY or os.geteuid() == 0 else limit,
                   _memory_rate(), _ros())


def _board() -> str:
    for path in _MODELS:
        try:
            name = Path(path).read_text().strip('\0\n ')
        except (OSError, UnicodeDecodeError):
            continue
        if name:
            return f'{name} ({platform.machine()})'
    return platform.machine()


def _memory() -> tuple[int, int]:
    """All and free; of the cgroup where that has less."""
    lines = dict(line.split(':') for line in Path('/proc/meminfo').read_text().splitlines())
    memory, free = (int(lines[name].split()[0]) * 1024 for name in ('MemTotal', 'MemAvailable'))
    try:
        most = int(_CGROUP_MOST.read_text())
    except (OSError, ValueError):       # no cgroup, or 'max'
        return memory, free
    return min(memory, most), min(free, most)


def _memory_rate() -> float:
    data = np.ones(_SWEEP_BYTES // 4, np.float32)
    best = np.inf
    for _ in range(5):
        start = time.perf_counter()
        np.dot(data, data)
        best = min(best, time.perf_counter() - start)
    return data.nbytes / best


def _ros() -> str:
    if find_spec('rclpy') is None:
        return ''
    from rclpy.utilities import get_rmw_implementation_identifier

    distribution = os.environ.get('ROS_DISTRO', 'a distribution that is not sourced')
    messages = '' if find_spec('flash_llm_msgs') else '; flash_llm_msgs is missing'
    return f'{distribution}, {get_rmw_implementation_identifier()}{messages}'
