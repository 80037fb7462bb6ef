"""One GGUF file, or all the files of a model that was split: metadata, and tensors by rows."""

from collections.abc import KeysView
import os
from pathlib import Path
import re
from typing import Any, NamedTuple

import gguf
import numpy as np
from numpy.typing import NDArray

from flash_llm_ros.checkpoint.errors import CheckpointError
from flash_llm_ros.checkpoint.gguf_header import GgufHeader, TensorPlace, read_header

_PART = re.compile(r'(.+)-(\d{5})-of-(\d{5})\.gguf')    # the names that gguf-split gives


class _Stored(NamedTuple):
    file: Path
    place: TensorPlace


class GgufParts:
    """Of a split model any part may be given: the others lie beside it, the first has the fields.

    Tensors stay on disk until their rows are asked for.
    """

    def __init__(self, path: Path) -> None:
        """Raises CheckpointError, OSError."""
        given = _header(path)
        self.files = _all_parts(path, given.fields)
        self.fields: dict[str, Any] = {}
        self._tensors: dict[str, _Stored] = {}
        for index, file in enumerate(self.files):
            header = given if file == path else _header(file)
            if (number := header.fields.get('split.no', 0)) != index:
                raise CheckpointError(f'{file}: split.no is {number}; by its name it must be '
                                      f'{index}')
            if index == 0:
                self.fields = header.fields
            for name, place in header.tensors.items():
                if name in self._tensors:
                    raise CheckpointError(f'{file}: tensor {name} is in '
                                          f'{self._tensors[name].file}, too')
                self._tensors[name] = _Stored(file, place)
        self._check_kinds()
        whole = self.fields.get('split.tensors.count', len(self._tensors))
        if whole != len(self._tensors):
            raise CheckpointError(f'{path}: split.tensors.count is {whole}; its parts have '
                                  f'{len(self._tensors)} tensors')

    @property
    def names(self) -> KeysView[str]:
        return self._tensors.keys()

    def shape(self, name: str) -> tuple[int, ...]:
        return self._tensors[name].place.shape

    def rows(self, name: str, start: int = 0, stop: int | None = None) -> NDArray[np.float32]:
        """Rows [start, stop) of a tensor, or so many of its values where it has one dimension."""
        file, place = self._tensors[name]
        start, stop, _ = slice(start, stop).indices(place.shape[0])
        wanted = max(stop - start, 0) * place.row_bytes
        with file.open('rb', buffering=0) as source:
            content = _read(source.fileno(), place.start + start * place.row_bytes, wanted)
        if len(content) < wanted:
            raise CheckpointError(f'{file}: tensor {name} is cut off')
        packed = np.frombuffer(content, np.uint8).reshape(-1, place.row_bytes)
        values = gguf.dequantize(packed, place.kind)
        return np.ascontiguousarray(values, np.float32).reshape(-1, *place.shape[1:])

    def _check_kinds(self) -> None:
        """Raise CheckpointError for one that the library does not dequantise."""
        samples = {stored.place.kind: (name, stored) for name, stored in self._tensors.items()}
        for kind, (name, stored) in samples.items():
            block = np.zeros((1, gguf.GGML_QUANT_SIZES[kind][1]), np.uint8)
            try:
                gguf.dequantize(block, kind)
            except NotImplementedError:
                raise CheckpointError(f'{stored.file}: tensor {name} is of type {kind.name}, which '
                                      'the gguf library does not dequantise') from None


def _read(descriptor: int, offset: int, count: int) -> bytes:
    """One call gives at most 2 GiB."""
    parts = []
    while count and (part := os.pread(descriptor, min(count, 1 << 30), offset)):
        parts.append(part)
        offset, count = offset + len(part), count - len(part)
    return parts[0] if len(parts) == 1 else b''.join(parts)


def _header(path: Path) -> GgufHeader:
    try:
        return read_header(path)
    except ValueError as error:
        raise CheckpointError(f'{path} is not a readable GGUF file: {error}') from None


def _all_parts(path: Path, fields: dict[str, Any]) -> tuple[Path, ...]:
    count = fields.get('split.count', 1)
    if not isinstance(count, int) or count <= 1:
        return (path,)
    name = _PART.fullmatch(path.name)
    if name is None or int(name[3]) != count:
        raise CheckpointError(f'{path} is one of {count} parts of a model; their names must be '
                              f'NAME-00001-of-{count:05d}.gguf and so on')
    files = tuple(path.with_name(f'{name[1]}-{part:05d}-of-{count:05d}.gguf')
                  for part in range(1, count + 1))
    if missing := [file.name for file in files if not file.is_file()]:
        raise CheckpointError(f'{path} is one of {count} parts of a model; {missing[0]} is not '
                              'beside it' + (f', nor {len(missing) - 1} more' if len(missing) > 1
                                             else ''))
    return files
