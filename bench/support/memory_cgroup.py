"""A memory cgroup (version 1 or 2) for one command, so that caps come from the kernel."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
import os
from pathlib import Path
import uuid

_V1 = Path('/sys/fs/cgroup/memory')
_V2 = Path('/sys/fs/cgroup')


@dataclass(frozen=True)
class MemoryCgroup:
    """A group with a limit; who writes its number to `path`/cgroup.procs is in it."""

    path: Path
    version: int

    def limit(self, size: int) -> None:
        """Cap the group's memory, page cache included, at `size` bytes, without any swap."""
        names = (('memory.limit_in_bytes', 'memory.memsw.limit_in_bytes') if self.version == 1
                 else ('memory.max', 'memory.swap.max'))
        for name, value in zip(names, (size, size if self.version == 1 else 0), strict=True):
            if (self.path / name).exists():     # the second one: where swap is accounted for
                (self.path / name).write_text(str(value))

    def oom_kills(self) -> int:
        name = 'memory.oom_control' if self.version == 1 else 'memory.events'
        for line in (self.path / name).read_text().splitlines():
            key, _, value = line.partition(' ')
            if key == 'oom_kill':
                return int(value)
        return 0


def cgroup_version() -> int:
    """1 or 2, or 0 where no memory cgroup can be made."""
    if (_V1 / 'memory.limit_in_bytes').exists() and os.access(_V1, os.W_OK):
        return 1
    controllers = _V2 / 'cgroup.subtree_control'
    if controllers.exists() and 'memory' in controllers.read_text() and os.access(_V2, os.W_OK):
        return 2
    return 0


@contextmanager
def memory_cgroup() -> Iterator[MemoryCgroup]:
    """Raises RuntimeError where memory cgroups cannot be used."""
    version = cgroup_version()
    if not version:
        raise RuntimeError('no writable memory cgroup (version 1 or 2); run as root')
    path = (_V1 if version == 1 else _V2) / f'flash_llm_{uuid.uuid4().hex[:12]}'
    path.mkdir()
    try:
        yield MemoryCgroup(path, version)
    finally:
        path.rmdir()
