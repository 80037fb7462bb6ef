"""Verified reads of groups into a fixed slab of slots: the flash side of the NumPy core."""

from collections.abc import Callable, Iterator
import ctypes
import errno
from itertools import groupby
import mmap
import os
import time

import numpy as np

from flash_llm_ros.store.checksum import crc32c
from flash_llm_ros.store.errors import ChecksumError, FlashLlmError, ReadFailedError
from flash_llm_ros.store.geometry import CHECKSUM_BYTES

DISCARD = -1               # a slot that nobody reads
MAX_CHUNK_BYTES = 1 << 30  # one read call delivers less than 2 GiB
_REQUEST_BYTES = 1 << 20
_REQUEST_PIECES = 1024  # IOV_MAX


def request_groups(group_bytes: int) -> int:
    """The most groups one request should read, the same as in the native core."""
    return min(max(1, _REQUEST_BYTES // group_bytes), _REQUEST_PIECES)


def _wanted(slots: list[int]) -> Iterator[tuple[int, int]]:
    """The stretches [begin, end) of slots without DISCARD."""
    begin = 0
    for discarded, stretch in groupby(slots, DISCARD.__eq__):
        end = begin + len(list(stretch))
        if not discarded:
            yield begin, end
        begin = end


class Slab:
    """One private anonymous mapping of equal slots, touched, and locked where that is allowed."""

    def __init__(self, slots: int, slot_bytes: int, lock_memory: bool) -> None:
        size = (slots + 1) * slot_bytes
        self._memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self._memory.madvise(mmap.MADV_DONTFORK)
        memory = np.frombuffer(self._memory, np.uint8).reshape(slots + 1, slot_bytes)
        memory[:] = 0
        self.bytes, self.discarded = memory[:slots], memory[slots]
        self.locked = lock_memory and self._lock(size)
        self._slots = slots
        self._taken = 0

    def take(self, count: int, what: str) -> int:
        """The first of ``count`` neighbouring slots that nobody has; ValueError if too few are."""
        if count > self._slots - self._taken:
            raise ValueError(f'slots: {what} needs {count} of them, '
                             f'{self._slots - self._taken} of {self._slots} are left')
        first = self._taken
        self._taken += count
        return first

    def give_back(self, count: int) -> None:
        """Undo the latest take."""
        self._taken -= count

    def close(self) -> None:
        del self.bytes, self.discarded
        self._memory.close()

    def _lock(self, size: int) -> bool:
        libc = ctypes.CDLL(None, use_errno=True)
        address = ctypes.c_void_p(self.bytes.ctypes.data)
        return libc.mlock(address, ctypes.c_size_t(size)) == 0


class GroupFile:
    """neurons.bin: reads runs of groups into slots and checks every group's CRC32C."""

    def __init__(self, path: str, groups: int, slab: Slab, direct_io: bool,
                 section_of: Callable[[int], str]) -> None:
        self._path = path
        self._slab = slab
        self._section_of = section_of
        self._group_bytes = slab.bytes.shape[1]
        self.counters = dict.fromkeys(('flash_bytes', 'flash_reads', 'retries', 'crc_checked',
                                       'read_ns'), 0)
        self.direct = direct_io
        self._descriptor = self._open()
        try:
            self._check_size(groups)
            if self.direct and not self._direct_read_works():
                os.close(self._descriptor)
                self.direct = False
                self._descriptor = self._open()
        except BaseException:
            self.close()
            raise

    def read(self, first_group: int, slots: list[int]) -> None:
        """Read neighbouring groups into the given slots; one retry, then a FlashLlmError.

        What goes to DISCARD is not verified, and not read again in a retry.
        """
        begin = time.monotonic_ns()
        try:
            self._read_once(first_group, slots)
        except FlashLlmError:
            self.counters['retries'] += 1
            for begin, end in _wanted(slots):
                self._read_once(first_group + begin, slots[begin:end])
        finally:
            self.counters['read_ns'] += time.monotonic_ns() - begin

    def close(self) -> None:
        os.close(self._descriptor)

    def _open(self) -> int:
        flags = os.O_RDONLY | os.O_CLOEXEC
        try:
            if self.direct:
                try:
                    return os.open(self._path, flags | os.O_DIRECT)
                except OSError as error:
                    if error.errno != errno.EINVAL:
                        raise
                    self.direct = False
            descriptor = os.open(self._path, flags)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)  # nothing read unasked
            return descriptor
        except OSError as error:
            raise ReadFailedError(f'{self._path}: cannot be opened: {error.strerror}') from error

    def _check_size(self, groups: int) -> None:
        size, wanted = os.fstat(self._descriptor).st_size, groups * self._group_bytes
        if size != wanted:
            raise ReadFailedError(f'{self._path}: is {size} bytes long, must be {wanted} '
                                  f'({groups} groups of {self._group_bytes} bytes)')

    def _direct_read_works(self) -> bool:
        try:
            os.preadv(self._descriptor, [self._slab.bytes[0]], 0)
        except OSError as error:
            return error.errno != errno.EINVAL
        return True

    def _read_once(self, first_group: int, slots: list[int]) -> None:
        offset, size = first_group * self._group_bytes, len(slots) * self._group_bytes
        self.counters['flash_reads'] += 1
        try:
            done = os.preadv(self._descriptor, self._pieces(slots), offset)
        except OSError as error:
            raise ReadFailedError(f'{self._where(first_group)}: read failed twice: '
                                  f'{error.strerror}') from error
        self.counters['flash_bytes'] += done
        if not self.direct:
            os.posix_fadvise(self._descriptor, offset, size, os.POSIX_FADV_DONTNEED)
        if done != size:
            raise ReadFailedError(f'{self._where(first_group)}: read ended after {done} of '
                                  f'{size} bytes twice')
        self._verify(first_group, slots)

    def _pieces(self, slots: list[int]) -> list[np.ndarray]:
        """One piece per stretch of neighbouring slots: a contiguous run is a single plain read."""
        breaks = [i for i in range(1, len(slots))
                  if slots[i] != slots[i - 1] + 1 or slots[i - 1] == DISCARD]
        return [self._slab.discarded if slots[begin] == DISCARD
                else self._slab.bytes[slots[begin]:slots[end - 1] + 1]
                for begin, end in zip([0, *breaks], [*breaks, len(slots)], strict=True)]

    def _verify(self, first_group: int, slots: list[int]) -> None:
        wanted = [index for index, slot in enumerate(slots) if slot != DISCARD]
        data = self._slab.bytes[[slots[index] for index in wanted]]
        stored = np.ascontiguousarray(data[:, -CHECKSUM_BYTES:]).view('<u4')[:, 0]
        computed = crc32c(data[:, :-CHECKSUM_BYTES])
        self.counters['crc_checked'] += len(wanted)
        for index in np.flatnonzero(stored != computed)[:1]:
            raise ChecksumError(f'{self._where(first_group + wanted[index])}: CRC32C is '
                                f'{computed[index]:08x} instead of {stored[index]:08x}, twice')

    def _where(self, group: int) -> str:
        return (f'{self._path}: group {group} ({self._section_of(group)}, '
                f'byte {group * self._group_bytes})')
