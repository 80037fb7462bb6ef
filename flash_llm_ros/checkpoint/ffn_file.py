"""A file of feed-forward weights alone: what makes a model a ReLU one, small enough to be sent.

gzip around safetensors. Of each matrix, by its canonical name, there are int8 [rows, columns],
whole numbers of steps, and NAME.step float16 [rows]; and `relu_threshold`, float32 [1]. With a step
of 0.072 times the root mean square of its row rounding costs 0.04 % of the squares, between int8
and int4, and a Huffman code of these numbers takes 5.9 bits a weight, outliers included.
"""

import gzip
from pathlib import Path
import zlib

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load

from flash_llm_ros.checkpoint.errors import CheckpointError

_THRESHOLD = 'relu_threshold'


class FfnFile:
    """Gate, up and down of every layer, with ReLU that is 0 up to `relu_threshold`."""

    def __init__(self, path: Path) -> None:
        """Read the whole file. Raises CheckpointError and OSError."""
        try:
            self._tensors = load(gzip.decompress(path.read_bytes()))
            self.relu_threshold = float(self._tensors[_THRESHOLD][0])
            self._check()
        except (EOFError, gzip.BadGzipFile, zlib.error, SafetensorError, IndexError, KeyError,
                ValueError) as error:
            what = f'it lacks {error}' if isinstance(error, KeyError) else str(error)
            raise CheckpointError(f'{path} is no file of feed-forward weights: {what}') from None

    def _check(self) -> None:
        if not 0 <= self.relu_threshold < np.inf:
            raise ValueError(f'{_THRESHOLD} is {self.relu_threshold}; it must be a number '
                             'from 0 on')
        for name in self.names:
            codes, steps = self._tensors[name], self._tensors[f'{name}.step']
            if codes.dtype != np.int8 or codes.ndim != 2 or steps.shape != codes.shape[:1]:
                raise ValueError(f'{name} is {codes.dtype} {codes.shape} with steps '
                                 f'{steps.shape}; it must be int8 [rows, columns] with [rows]')

    @property
    def names(self) -> tuple[str, ...]:
        """Canonical names of the matrices."""
        return tuple(name for name in self._tensors
                     if name != _THRESHOLD and not name.endswith('.step'))

    def shape(self, name: str) -> tuple[int, ...]:
        return self._tensors[name].shape

    def rows(self, name: str, start: int = 0, stop: int | None = None) -> NDArray[np.float32]:
        """Rows [start, stop) of a matrix."""
        steps = self._tensors[f'{name}.step'][start:stop, None].astype(np.float32)
        return self._tensors[name][start:stop] * steps
