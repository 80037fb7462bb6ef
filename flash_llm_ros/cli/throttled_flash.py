"""A slower flash than this machine's, for measurements: the kernel's throttling of a device."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
import os
from pathlib import Path
import uuid

from flash_llm_ros.store.flash_classes import FlashClass

_V1 = Path('/sys/fs/cgroup/blkio')
_V2 = Path('/sys/fs/cgroup')


@dataclass(frozen=True)
class ThrottledFlash:
    """A cgroup; who is in it reads a device as slowly as a class of flash does."""

    path: Path

    @property
    def members(self) -> Path:
        """A process whose number is written there is in it."""
        return self.path / 'cgroup.procs'


@contextmanager
def throttled_flash(place: Path, kind: FlashClass) -> Iterator[ThrottledFlash]:
    """For reads of the device on which `place` lies; nobody is in it yet.

    OSError or RuntimeError where the kernel does not let one (it takes root, and a cgroup of
    version 1 with blkio or of version 2 with io).
    """
    device = _whole_device(place)
    if (_V1 / 'blkio.throttle.read_bps_device').exists():
        path = _V1 / f'flash_llm_{uuid.uuid4().hex[:12]}'
        limits = {'blkio.throttle.read_bps_device': f'{device} {kind.bytes_per_second}',
                  'blkio.throttle.read_iops_device': f'{device} {kind.reads_per_second}'}
    elif 'io' in _text(_V2 / 'cgroup.subtree_control').split():
        path = _V2 / f'flash_llm_{uuid.uuid4().hex[:12]}'
        limits = {'io.max': f'{device} rbps={kind.bytes_per_second} riops={kind.reads_per_second}'}
    else:
        raise RuntimeError('no cgroup that throttles a device (blkio of version 1, io of version '
                           '2) can be made; run as root')
    path.mkdir()
    try:
        for name, limit in limits.items():
            (path / name).write_text(limit)
        yield ThrottledFlash(path)
    finally:
        path.rmdir()


@contextmanager
def reading_slowly(place: Path, kind: FlashClass) -> Iterator[None]:
    """This process, and what it starts, reads the device of `place` so; errors as above."""
    with throttled_flash(place, kind) as group:
        before = _own_group(group)
        group.members.write_text(str(os.getpid()))
        try:
            yield
        finally:
            (before / 'cgroup.procs').write_text(str(os.getpid()))


def _own_group(group: ThrottledFlash) -> Path:
    """The cgroup that this process is in, of the same hierarchy."""
    for line in Path('/proc/self/cgroup').read_text().splitlines():
        _, controllers, name = line.split(':', 2)
        if controllers == ('blkio' if group.path.parent == _V1 else ''):
            return group.path.parent / name.lstrip('/')
    raise RuntimeError('/proc/self/cgroup does not say in which cgroup this process is')


def _whole_device(place: Path) -> str:
    """Major and minor number of the disk, which the kernel throttles as a whole."""
    number = place.stat().st_dev
    device = Path(f'/sys/dev/block/{os.major(number)}:{os.minor(number)}').resolve()
    if not device.exists():
        raise RuntimeError(f'{place} lies on no block device that could be throttled')
    disk = device.parent if (device / 'partition').exists() else device
    return _text(disk / 'dev').strip()


def _text(file: Path) -> str:
    try:
        return file.read_text()
    except OSError:
        return ''
