"""Whether a GGUF file's header is what it says, before anybody takes its counts at their word."""

from pathlib import Path
import struct
from typing import Any, BinaryIO

_MAGIC = b'GGUF'
_STRING, _ARRAY = 8, 9
_BYTES_OF = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_MOST_FIELDS = 65_536           # and tensors; the largest models have some thousands
_MOST_ENTRIES = 1 << 22         # of all arrays; 1.3 million with a vocabulary of 262,144 tokens
_MOST_TEXT = 4096               # bytes of a name and of a text in an array
_MOST_DIMENSIONS = 4


def check_header(path: Path) -> None:
    """Raise ValueError, with the offset, for a header that is cut off or asks for too much.

    The time that it takes to read a header that passes is bounded: by its counts, not by what
    the file says. Raises OSError.
    """
    with path.open('rb') as file:
        _Header(file, path.stat().st_size).check()


class _Header:
    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file, self._size = file, size
        self._order = '<'
        self._entries = 0

    def check(self) -> None:
        if self._taken(4, 'the magic') != _MAGIC:
            raise ValueError("byte 0: it must begin with 'GGUF'")
        if self._number('I', 'the version') & 0xFFFF == 0:
            self._order = '>'       # written on the other kind of machine
        tensors = self._count('tensors', _MOST_FIELDS)
        for _ in range(self._count('fields', _MOST_FIELDS)):
            self._skip_field()
        for _ in range(tensors):
            self._skip_text('the name of a tensor', _MOST_TEXT)
            at = self._file.tell()
            dimensions = self._number('I', 'dimensions')
            if dimensions > _MOST_DIMENSIONS:
                raise ValueError(f'byte {at}: {dimensions} dimensions of a tensor; at most '
                                 f'{_MOST_DIMENSIONS} are there')
            self._skip(8 * dimensions + 12, 'a tensor')

    def _skip_field(self) -> None:
        self._skip_text('the name of a field', _MOST_TEXT)
        kind = self._number('I', 'the type of a field')
        if kind != _ARRAY:
            self._skip_value(kind)
            return
        kind = self._number('I', 'the type of an array')
        count = self._count('entries of arrays', _MOST_ENTRIES - self._entries)
        self._entries += count
        if kind in _BYTES_OF:
            self._skip(count * _BYTES_OF[kind], f'an array of {count} entries')
            return
        if kind != _STRING:
            raise ValueError(f'byte {self._file.tell() - 12}: arrays of type {kind} are unknown')
        for _ in range(count):
            self._skip_text('a text in an array', _MOST_TEXT)

    def _skip_value(self, kind: int) -> None:
        if kind == _STRING:
            self._skip_text('a text', self._size)
        elif kind in _BYTES_OF:
            self._skip(_BYTES_OF[kind], 'a value')
        else:
            raise ValueError(f'byte {self._file.tell() - 4}: fields of type {kind} are unknown')

    def _skip_text(self, what: str, most: int) -> None:
        at = self._file.tell()
        length = self._number('Q', what)
        if length > most:
            raise ValueError(f'byte {at}: {what} is {length} bytes long, at most {most} may be')
        self._skip(length, what)

    def _count(self, what: str, most: int) -> int:
        at = self._file.tell()
        count = self._number('Q', f'the number of {what}')
        if count > most:
            raise ValueError(f'byte {at}: {count} {what}; at most {most} may be there')
        return count

    def _number(self, form: str, what: str) -> Any:
        form = self._order + form
        return struct.unpack(form, self._taken(struct.calcsize(form), what))[0]

    def _taken(self, count: int, what: str) -> bytes:
        at = self._file.tell()
        found = self._file.read(count)
        if len(found) < count:
            raise ValueError(f'byte {at}: {what} is cut off, the file ends at {self._size}')
        return found

    def _skip(self, count: int, what: str) -> None:
        at = self._file.tell()
        if at + count > self._size:
            raise ValueError(f'byte {at}: {what} takes {count} bytes, the file ends at '
                             f'{self._size}')
        self._file.seek(count, 1)
