"""The header of a GGUF file: its metadata, and where its tensors lie.

Read in one pass, without taking its counts at their word: the time and the memory that it takes
are bounded by them, not by what the file says.
"""

from itertools import pairwise
from pathlib import Path
import struct
from typing import Any, BinaryIO, NamedTuple

from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
import numpy as np

_MAGIC = b'GGUF'
_VERSIONS = (2, 3)
_STRING, _ARRAY = 8, 9
_FORMATS = {0: 'B', 1: 'b', 2: 'H', 3: 'h', 4: 'I', 5: 'i', 6: 'f', 7: '?', 10: 'Q', 11: 'q',
            12: 'd'}
_ALIGNMENT = 32                 # where general.alignment does not say another one
_MOST_FIELDS = 65_536           # and tensors; the largest models have some thousands
_MOST_ENTRIES = 1 << 22         # of all arrays; 1.3 million with a vocabulary of 262,144 tokens
_MOST_TEXT = 4096               # bytes of a name and of a text in an array
_MOST_DIMENSIONS = 4


class TensorPlace(NamedTuple):
    """A tensor in a file: numbers of one kind, quantised in blocks along its rows."""

    kind: GGMLQuantizationType
    shape: tuple[int, ...]      # [out, in] of a matrix
    start: int                  # byte of the file
    row_bytes: int              # of a value where there is but one dimension

    @property
    def end(self) -> int:
        return self.start + self.shape[0] * self.row_bytes


class GgufHeader(NamedTuple):
    fields: dict[str, Any]
    tensors: dict[str, TensorPlace]


def read_header(path: Path) -> GgufHeader:
    """Raises ValueError, with the offset, for one that is cut off or asks for too much; OSError."""
    with path.open('rb') as file:
        return _Reader(file, path.stat().st_size).header()


class _Reader:
    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file, self._size = file, size
        self._entries = 0

    def header(self) -> GgufHeader:
        if self._taken(4, 'the magic') != _MAGIC:
            raise ValueError("byte 0: it must begin with 'GGUF'")
        version = self._number('I', 'the version')
        if version & 0xFFFF == 0:
            raise ValueError('it is written for big-endian machines; `gguf-convert-endian FILE '
                             'little`, which comes with the gguf package, turns it round')
        if version not in _VERSIONS:
            raise ValueError(f'byte 4: its version is {version}; 2 and 3 are read')
        tensors = self._count('tensors', _MOST_FIELDS)
        fields: dict[str, Any] = {}
        for _ in range(self._count('fields', _MOST_FIELDS)):
            name = self._text('the name of a field', _MOST_TEXT)
            if name in fields:
                raise ValueError(f'byte {self._file.tell()}: field {name} is there twice')
            fields[name] = self._value(self._number('I', 'the type of a field'))
        return GgufHeader(fields, self._tensors(tensors, fields))

    def _tensors(self, count: int, fields: dict[str, Any]) -> dict[str, TensorPlace]:
        places: dict[str, TensorPlace] = {}
        for _ in range(count):
            name = self._text('the name of a tensor', _MOST_TEXT)
            if name in places:
                raise ValueError(f'byte {self._file.tell()}: tensor {name} is there twice')
            places[name] = self._place(name)
        alignment = fields.get('general.alignment', _ALIGNMENT)
        if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
            raise ValueError(f'general.alignment is {alignment}; it must be a power of two')
        first = -(-self._file.tell() // alignment) * alignment
        places = {name: place._replace(start=first + place.start)
                  for name, place in places.items()}
        self._check_ends(places)
        return places

    def _place(self, name: str) -> TensorPlace:
        at = self._file.tell()
        dimensions = self._number('I', 'dimensions')
        if not 0 < dimensions <= _MOST_DIMENSIONS:
            raise ValueError(f'byte {at}: {dimensions} dimensions of a tensor; at least 1 and at '
                             f'most {_MOST_DIMENSIONS} are there')
        *shape, kind, start = struct.unpack(
            f'<{dimensions}QIQ', self._taken(8 * dimensions + 12, 'a tensor'))
        try:
            kind = GGMLQuantizationType(kind)
        except ValueError:
            raise ValueError(f'tensor {name} is of type {kind}, which the gguf library does not '
                             'know; a newer one may') from None
        block, block_bytes = GGML_QUANT_SIZES[kind]
        row = 1
        for size in shape[:-1]:
            row *= size
        if row % block:
            raise ValueError(f'tensor {name} has rows of {row} values; {kind.name} has blocks of '
                             f'{block}')
        return TensorPlace(kind, tuple(reversed(shape)), start, row // block * block_bytes)

    def _check_ends(self, places: dict[str, TensorPlace]) -> None:
        """Whether all bytes of all tensors are there, and each but once."""
        ordered = sorted(places.items(), key=lambda item: item[1].start)
        for (name, place), (other, following) in pairwise(ordered):
            if place.end > following.start:
                raise ValueError(f'tensor {name} ends at byte {place.end}, behind the beginning of '
                                 f'tensor {other}')
        if ordered and ordered[-1][1].end > self._size:
            name, place = ordered[-1]
            raise ValueError(f'it is cut off: tensor {name} ends at byte {place.end}, the file '
                             f'ends at {self._size}; copy or download it again')

    def _value(self, kind: int) -> Any:
        if kind == _STRING:
            return self._text('a text', self._size)
        if kind in _FORMATS:
            return self._number(_FORMATS[kind], 'a value')
        if kind != _ARRAY:
            raise ValueError(f'byte {self._file.tell() - 4}: fields of type {kind} are unknown')
        kind = self._number('I', 'the type of an array')
        count = self._count('entries of arrays', _MOST_ENTRIES - self._entries)
        self._entries += count
        if kind in _FORMATS:
            dtype = np.dtype(_FORMATS[kind]).newbyteorder('<')
            content = self._taken(count * dtype.itemsize, f'an array of {count} entries')
            return np.frombuffer(content, dtype).tolist()
        if kind != _STRING:
            raise ValueError(f'byte {self._file.tell() - 12}: arrays of type {kind} are unknown')
        return [self._text('a text in an array', _MOST_TEXT) for _ in range(count)]

    def _text(self, what: str, most: int) -> str:
        at = self._file.tell()
        length = self._number('Q', what)
        if length > most:
            raise ValueError(f'byte {at}: {what} is {length} bytes long, at most {most} may be')
        try:
            return self._taken(length, what).decode()
        except UnicodeDecodeError:
            raise ValueError(f'byte {at}: {what} is not UTF-8') from None

    def _count(self, what: str, most: int) -> int:
        at = self._file.tell()
        count = self._number('Q', f'the number of {what}')
        if count > most:
            raise ValueError(f'byte {at}: {count} {what}; at most {most} may be there')
        return count

    def _number(self, form: str, what: str) -> Any:
        form = f'<{form}'
        return struct.unpack(form, self._taken(struct.calcsize(form), what))[0]

    def _taken(self, count: int, what: str) -> bytes:
        at = self._file.tell()
        if at + count > self._size:
            ending = ('is cut off, the file ends at' if count <= 8 else
                      f'takes {count} bytes, the file ends at')
            raise ValueError(f'byte {at}: {what} {ending} {self._size}')
        return self._file.read(count)
