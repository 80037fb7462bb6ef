"""What the process really takes, and giving freed memory back to the system."""

from contextlib import suppress
import ctypes
import mmap
import os

_PAGE = os.sysconf('SC_PAGESIZE')
_M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD, _M_ARENA_MAX = -3, -1, -8
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


def forget_peak() -> None:
    """Let ``peak_resident_bytes`` count from here on; nothing happens where that is refused."""
    with suppress(OSError), open('/proc/self/clear_refs', 'w', encoding='ascii') as file:
        file.write('5')


def return_large_blocks() -> None:
    """Make glibc map large blocks one by one, so that freeing them frees their pages."""
    _set_thresholds(_THRESHOLD, _THRESHOLD)


def share_one_heap() -> None:
    """Make glibc serve all threads from one heap; of several, each keeps what it was once given."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, 'mallopt'):
        libc.mallopt(_M_ARENA_MAX, 1)


def _set_thresholds(mapped: int, trimmed: int) -> None:
    """Bytes from which a block is mapped by itself, and free ones go back to the system."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, 'mallopt'):
        libc.mallopt(_M_MMAP_THRESHOLD, mapped)
        libc.mallopt(_M_TRIM_THRESHOLD, trimmed)


def release_code(libraries: tuple[str, ...]) -> None:
    """Unmap the pages of code of libraries whose path contains one of these words.

    Much of it runs once, while a model is loaded. What runs again is mapped again from the page
    cache, or read again when the system needed that memory. Code is never written to, so nothing
    is lost.
    """
    libc = ctypes.CDLL(None)
    libc.madvise.argtypes = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
    with open('/proc/self/maps', encoding='utf-8', errors='surrogateescape') as file:
        for line in file:
            addresses, permissions, _, _, inode, *path = line.split(maxsplit=5)
            if permissions == 'r-xp' and inode != '0' and any(
                    word in path[0] for word in libraries):
                begin, end = (int(address, 16) for address in addresses.split('-'))
                libc.madvise(begin, end - begin, mmap.MADV_DONTNEED)


def trim_heap() -> None:
    """Return free heap pages to the system (glibc; elsewhere nothing happens)."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, 'malloc_trim'):
        libc.malloc_trim(0)
