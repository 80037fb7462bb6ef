"""How much of a file lies in the page cache, by mincore(2)."""

import ctypes
import mmap
import os
from pathlib import Path


def cached_bytes(path: Path) -> int:
    """Bytes of `path` in the page cache; every file below it when it is a folder."""
    if path.is_dir():
        return sum(cached_bytes(file) for file in path.rglob('*') if file.is_file())
    size = path.stat().st_size
    if not size:
        return 0
    libc = ctypes.CDLL(None, use_errno=True)
    pages = -(-size // mmap.PAGESIZE)
    vector = (ctypes.c_ubyte * pages)()
    with path.open('rb') as file:
        # Writable only because ctypes asks for it; the mapping is private.
        mapping = mmap.mmap(file.fileno(), size, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE)
        anchor = ctypes.c_char.from_buffer(mapping)
        failed = libc.mincore(ctypes.c_void_p(ctypes.addressof(anchor)), ctypes.c_size_t(size),
                              vector)
        error = ctypes.get_errno()
        del anchor
        mapping.close()
    if failed:
        raise OSError(error, os.strerror(error), str(path))
    return sum(page & 1 for page in vector) * mmap.PAGESIZE


def drop(path: Path) -> None:
    """Ask the kernel to forget a file, or every file of a folder."""
    for file in (path.rglob('*') if path.is_dir() else [path]):
        if file.is_file():
            descriptor = os.open(file, os.O_RDONLY)
            try:
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(descriptor)
