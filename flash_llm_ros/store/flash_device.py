"""Which device and file system a path lies on, so that figures measured on another are noticed."""

from dataclasses import dataclass
import os
from pathlib import Path
import re

_MOUNTS = Path('/proc/self/mountinfo')
_SECTOR = 512   # bytes, the unit of /sys/dev/block/*/size


@dataclass(frozen=True)
class FlashDevice:
    """Equal for two paths on the same file system of the same machine."""

    name: str           # of the block device, else what is mounted: vda1, overlay
    file_system: str    # ext4
    bytes: int          # of the block device, else of the file system

    def __str__(self) -> str:
        return f'{self.name} ({self.file_system}, {self.bytes / 1e9:.1f} GB)'

    @classmethod
    def of(cls, path: str | Path) -> 'FlashDevice':
        """The device under an existing path; raises OSError."""
        path = Path(path).resolve(strict=True)
        numbers, file_system, source = _mount_of(path)
        stats = os.statvfs(path)
        size = _block_device_bytes(numbers, source) or stats.f_blocks * stats.f_frsize
        return cls(os.path.basename(source) or source, file_system, size)


def _mount_of(path: Path) -> tuple[str, str, str]:
    """'major:minor', type and source of the file system that covers a path."""
    found = ('', 'unknown', 'unknown')
    longest = -1
    for line in _MOUNTS.read_text().splitlines():
        left, _, right = line.partition(' - ')
        mounted, (kind, source) = left.split(), right.split()[:2]
        point = _unescaped(mounted[4])
        # Of mounts on the same point the last one is seen.
        if len(point) >= longest and path.is_relative_to(point):
            found, longest = (mounted[2], kind, _unescaped(source)), len(point)
    return found


def _unescaped(text: str) -> str:
    return re.sub(r'\\(\d{3})', lambda match: chr(int(match[1], 8)), text)


def _block_device_bytes(numbers: str, source: str) -> int:
    """0 where no block device is known: some file systems have numbers of their own."""
    try:
        device = os.stat(source).st_rdev
        candidates = [numbers, f'{os.major(device)}:{os.minor(device)}']
    except OSError:
        candidates = [numbers]
    for candidate in candidates:
        try:
            return int(Path('/sys/dev/block', candidate, 'size').read_text()) * _SECTOR
        except (OSError, ValueError):
            continue
    return 0
