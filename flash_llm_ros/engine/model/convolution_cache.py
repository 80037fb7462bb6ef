"""What short convolutions keep of the tokens before: the last ones, and those before every 64th."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

STRIDE = 64     # tokens; from each multiple of it one can go on for as long as a text is the same


@dataclass(frozen=True)
class ConvolutionShape:
    """Of a layer's cache: a ring of the last rows, then the `before` rows before each multiple."""

    before: int     # tokens before the newest that a convolution is of
    back: int       # tokens of the last pass, which may have been wrong guesses

    @property
    def ring(self) -> int:
        return self.before + self.back

    def rows(self, tokens: int) -> int:
        """Of the cache, that can be of use behind so many tokens."""
        return self.ring + self.before * (tokens // STRIDE + 1)

    def reach(self, count: int, end: int) -> int:
        """As `AttentionPart.reach`."""
        return count if end - count <= self.back else count // STRIDE * STRIDE


class ConvolutionCache:
    """Of one layer. What is before the first token is zeros."""

    def __init__(self, shape: ConvolutionShape, rows: NDArray[np.floating]) -> None:
        """`rows` [shape.rows(context), d], zeros."""
        self._before, self._ring = shape.before, rows[:shape.ring]
        self._kept = rows[shape.ring:].reshape(-1, shape.before, rows.shape[1])

    def recall(self, position: int, before: NDArray[np.floating]) -> None:
        """Fill in the rows before a position, [before, d]."""
        if position % STRIDE == 0:
            before[:] = self._kept[position // STRIDE]
        else:
            before[:] = self._ring[self._places(position, self._before)]

    def keep(self, position: int, seen: NDArray[np.floating]) -> None:
        """Keep the rows of a pass that begins at a position, [before + tokens, d]."""
        end = position + len(seen) - self._before
        last = seen[-len(self._ring):]
        self._ring[self._places(end, len(last))] = last
        for place in range(position // STRIDE + 1, end // STRIDE + 1):
            self._kept[place] = seen[place * STRIDE - position:][:self._before]

    def _places(self, end: int, rows: int) -> NDArray[np.int64]:
        return np.arange(end - rows, end) % len(self._ring)
