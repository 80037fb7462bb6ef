"""What the process really takes, and giving freed memory back to the system."""

import ctypes
import os

_PAGE = os.sysconf('SC_PAGESIZE')
_M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD = -3, -1
_THRESHOLD = 256 * 1024


def resident_bytes() -> int:
    """Resident set size of this process in bytes."""
    with open('/proc/self/statm', encoding='ascii') as file:
        return int(file.read().split()[1]) * _PAGE


def peak_resident_bytes() -> int:
    """Highest resident set size of this process so far, in bytes."""
    with open('/proc/self/status', encoding='ascii') as file:
        for line in file:
            if line.startswith('VmHWM:'):
                return int(line.split()[1]) * 1024
    raise RuntimeError('/proc/self/status has no VmHWM')


def return_large_blocks() -> None:
    """Make glibc map large blocks one by one, so that freeing them frees their pages."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, 'mallopt'):
        libc.mallopt(_M_MMAP_THRESHOLD, _THRESHOLD)
        libc.mallopt(_M_TRIM_THRESHOLD, _THRESHOLD)


def trim_heap() -> None:
    """Return free heap pages to the system (glibc; elsewhere nothing happens)."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, 'malloc_trim'):
        libc.malloc_trim(0)
