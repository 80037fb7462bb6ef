"""Which tokens of a recording calibration learns from, and which it only measures on."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from flash_llm_ros.convert.traces import Traces

_HELD_OUT = 4                   # every fourth piece of text
_PLACES = 4                     # that text to measure on comes from: one alone may be peculiar


@dataclass(frozen=True)
class Samples:
    """A recording and its tokens, in pieces: neighbours are alike, so pieces are held out whole."""

    traces: Traces
    tokens: NDArray[np.int64]
    most_piece: int             # tokens; what the engine's context takes

    @property
    def piece(self) -> int:
        return max(1, min(self.most_piece, len(self.tokens) // (2 * _HELD_OUT)))

    def train(self, layer: int, most: int) -> NDArray[np.float32]:
        """FFN inputs [tokens, d], at most so many, spread over the text."""
        return self._some(layer, most, ~self._is_held_out(self._index))

    def held_out(self, layer: int, most: int) -> NDArray[np.float32]:
        return self._some(layer, most, self._is_held_out(self._index))

    def held_out_halves(self, layer: int, most: int
                        ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Every other held-out piece, and those between: to choose with, and to measure."""
        held_out = self._is_held_out(self._index)
        second = self._index // self.piece // _HELD_OUT % 2 == 1
        return (self._some(layer, most, held_out & ~second),
                self._some(layer, most, held_out & second))

    def train_pieces(self, most: int) -> list[NDArray[np.int64]]:
        """Text for the model to read, at most so many tokens, of what is learned from."""
        return self._pieces(most, held_out=False)

    def held_out_pieces(self, most: int) -> list[NDArray[np.int64]]:
        return self._pieces(most, held_out=True)

    def _is_held_out(self, index: NDArray[np.int64]) -> NDArray[np.bool_]:
        return index // self.piece % _HELD_OUT == _HELD_OUT - 1

    @property
    def _index(self) -> NDArray[np.int64]:
        return np.arange(len(self.tokens))

    def _some(self, layer: int, most: int, which: NDArray[np.bool_]) -> NDArray[np.float32]:
        index = np.flatnonzero(which)
        if len(index) > most:
            index = index[np.linspace(0, len(index) - 1, most).astype(np.int64)]
        return self.traces.read(layer)[index]

    def _pieces(self, most: int, held_out: bool) -> list[NDArray[np.int64]]:
        starts = np.arange(0, len(self.tokens), self.piece)
        starts = starts[self._is_held_out(starts) == held_out]
        count = min(len(starts), max(_PLACES, most // self.piece))
        starts = starts[np.linspace(0, len(starts) - 1, count).astype(np.int64)]
        length = min(self.piece, max(2, most // max(count, 1)))
        return [self.tokens[start:start + length] for start in starts
                if start + 1 < len(self.tokens)]
