"""Safetensors files written tensor by tensor and read with pread, never with mmap.

An I/O error is then an exception and not a SIGBUS, and neither writing nor reading needs
more memory than one tensor.
"""

from collections.abc import Callable, Iterator
import hashlib
import json
import math
import os
from pathlib import Path
from typing import Any
import zlib

import numpy as np
from numpy.typing import NDArray

from flash_llm_ros.store.errors import ChecksumError, ErrorCode, FlashLlmError, ReadFailedError
from flash_llm_ros.store.output_file import OutputFile

_DTYPES = {'F32': np.float32, 'F16': np.float16, 'U8': np.uint8, 'I8': np.int8,
           'I32': np.int32, 'I64': np.int64}
_NAMES = {np.dtype(dtype): name for name, dtype in _DTYPES.items()}
_HEADER_LIMIT = 4_000_000       # bytes: of some 120 a tensor, with 15 tensors a layer at most
_MOST_DIMENSIONS = 8
_ALIGNMENT = 64
_CHUNK = 1 << 20


class TensorFileWriter:
    """Writes tensors in the order of a layout that is declared first.

    `layout` maps names to (dtype, shape). `close()` raises ValueError when a tensor is missing.
    """

    def __init__(self, path: Path, layout: dict[str, tuple[Any, tuple[int, ...]]]) -> None:
        self._expected = list(layout.items())
        header: dict[str, Any] = {}
        offset = 0
        for name, (dtype, shape) in layout.items():
            size = int(np.prod(shape)) * np.dtype(dtype).itemsize
            header[name] = {'dtype': _NAMES[np.dtype(dtype)], 'shape': list(shape),
                            'data_offsets': [offset, offset + size]}
            offset += size
        text = json.dumps(header).encode()
        text += b' ' * (-(len(text) + 8) % _ALIGNMENT)
        self.data_start = 8 + len(text)
        self.offsets = {name: (self.data_start + entry['data_offsets'][0],
                               entry['data_offsets'][1] - entry['data_offsets'][0])
                        for name, entry in header.items()}
        self._file = OutputFile(path)
        self._file.write(len(text).to_bytes(8, 'little') + text)

    def write(self, name: str, tensor: NDArray[Any]) -> None:
        expected_name, (dtype, shape) = self._expected.pop(0)
        if (name, tensor.dtype, tensor.shape) != (expected_name, np.dtype(dtype), shape):
            raise ValueError(f'tensor {name} {tensor.dtype} {tensor.shape} was written where '
                             f'{expected_name} {np.dtype(dtype)} {shape} was declared')
        self._file.write(np.ascontiguousarray(tensor).data)

    def close(self) -> None:
        self._file.close()
        if self._expected:
            raise ValueError(f'tensor {self._expected[0][0]} was declared but not written')


class TensorFile:
    """Reads single tensors of a safetensors file into memory of the caller's."""

    def __init__(self, path: Path, sums: dict[str, int] | None = None) -> None:
        """`sums`, as `checksums` found them: another read that brings other bytes is an error."""
        self.path, self._sums = path, sums
        try:
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise ReadFailedError(f'{path} cannot be opened: {error.strerror}.') from None
        try:
            self._entries = self._header()
        except OSError as error:
            os.close(self._fd)
            raise ReadFailedError(f'{path}, its header: {error.strerror}.') from None
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            os.close(self._fd)
            raise FlashLlmError(ErrorCode.STORE_CORRUPT,
                                f'{path} has no valid safetensors header: {error}.') from None

    def require(self, layout: dict[str, tuple[Any, tuple[int, ...]]]) -> None:
        """Raise FlashLlmError(STORE_CORRUPT) unless there are exactly these names."""
        found = {name: entry[:2] for name, entry in self._entries.items()}
        wanted = {name: (np.dtype(dtype), shape) for name, (dtype, shape) in layout.items()}
        for name in {**wanted, **found}:
            if found.get(name) != wanted.get(name):
                raise FlashLlmError(ErrorCode.STORE_CORRUPT,
                                    f'{self.path} has {_shown(found.get(name))} named {name}; by '
                                    f'the manifest it must be {_shown(wanted.get(name))}.')

    def names(self) -> list[str]:
        return list(self._entries)

    def nbytes(self, name: str) -> int:
        return self._entries[name][3]

    def checksums(self, progress: Callable[[int], None]) -> tuple[str, dict[str, int]]:
        """The file's SHA-256 and the CRC-32 of each tensor, of one and the same read.

        `progress` is called with the number of bytes just read. Raises ReadFailedError.
        """
        digest, sums, buffer, at = hashlib.sha256(), {}, memoryview(bytearray(_CHUNK)), 0
        for name, end in self._pieces():
            sums[name] = 0
            while at < end:
                part = buffer[:end - at]
                self._fill(part, at)
                digest.update(part)
                sums[name] = zlib.crc32(part, sums[name])
                progress(len(part))
                at += len(part)
        self.drop_page_cache()
        return digest.hexdigest(), sums

    def read(self, name: str) -> NDArray[Any]:
        """A tensor as a new array of its own; raises as `read_into`."""
        return self.read_into(name, memoryview(np.empty(self.nbytes(name), np.uint8)))

    def read_into(self, name: str, memory: memoryview) -> NDArray[Any]:
        """A tensor as an array over the first `nbytes(name)` bytes of `memory`.

        Raises ReadFailedError, and ChecksumError where two reads brought other bytes than
        `checksums` has seen.
        """
        dtype, shape, offset, size = self._entries[name]
        self._fill(memory[:size], offset)
        if not self._as_seen(name, memory[:size]):
            self._fill(memory[:size], offset)
            if not self._as_seen(name, memory[:size]):
                raise ChecksumError(f'{self.path}, tensor {name}, byte {offset}: it is not what '
                                    'it was when the store was verified, twice.')
        return np.frombuffer(memory, dtype, size // dtype.itemsize).reshape(shape)

    def drop_page_cache(self) -> None:
        """Give the memory of the pages that were read back to the robot."""
        os.posix_fadvise(self._fd, 0, 0, os.POSIX_FADV_DONTNEED)

    def close(self) -> None:
        os.close(self._fd)

    def __enter__(self) -> 'TensorFile':
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _header(self) -> dict[str, tuple[Any, tuple[int, ...], int, int]]:
        file_size = os.fstat(self._fd).st_size
        length = int.from_bytes(os.pread(self._fd, 8, 0), 'little')
        if not 0 < length <= min(_HEADER_LIMIT, file_size - 8):
            raise ValueError(f'its header length is {length}')
        header = json.loads(os.pread(self._fd, length, 8))
        header.pop('__metadata__', None)
        entries, data_start, position = {}, 8 + length, 0
        for name, entry in sorted(header.items(), key=lambda item: item[1]['data_offsets']):
            dtype, shape = np.dtype(_DTYPES[entry['dtype']]), tuple(entry['shape'])
            begin, end = entry['data_offsets']
            if not all(type(n) is int and n >= 0 for n in (begin, end, *shape)) \
                    or len(shape) > _MOST_DIMENSIONS or begin != position \
                    or end - begin != math.prod(shape) * dtype.itemsize:
                raise ValueError(f'the shape or the offsets of tensor {name} do not fit')
            entries[name] = (dtype, shape, data_start + begin, end - begin)
            position = end
        if data_start + position != file_size:
            raise ValueError(f'its tensors end at byte {data_start + position} of {file_size}')
        return entries

    def _pieces(self) -> Iterator[tuple[str, int]]:
        """What the file is made of, in its order, and where it ends; '' is the header."""
        places = sorted((offset, size, name) for name, (*_, offset, size) in self._entries.items())
        yield '', places[0][0] if places else os.fstat(self._fd).st_size
        yield from ((name, offset + size) for offset, size, name in places)

    def _as_seen(self, name: str, data: memoryview) -> bool:
        return self._sums is None or zlib.crc32(data) == self._sums.get(name)

    def _fill(self, view: memoryview, offset: int) -> None:
        done = 0
        while done < len(view):
            try:
                count = os.preadv(self._fd, [view[done:]], offset + done)
            except OSError as error:
                raise ReadFailedError(f'{self.path}, byte {offset + done}: '
                                      f'{error.strerror}.') from None
            if count == 0:
                raise ReadFailedError(
                    f'{self.path} ends at byte {offset + done}, within {len(view)} bytes from '
                    f'{offset} on; it was truncated. Convert the checkpoint again.')
            done += count


def _shown(entry: tuple[Any, tuple[int, ...]] | None) -> str:
    return 'no tensor' if entry is None else f'{entry[0]} {list(entry[1])}'
