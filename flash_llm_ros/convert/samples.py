"""Which tokens of a recording calibration learns from, and which it only measures on."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from flash_llm_ros.convert.recording import Recording

_HELD_OUT = 4                   # every fourth piece of text


@dataclass(frozen=True)
class Samples:
    """A recording and its tokens, in pieces: neighbours are alike, so pieces are held out whole."""

    recording: Recording
    tokens: NDArray[np.int64]
    most_piece: int             # tokens; what the engine's context takes

    @property
    def piece(self) -> int:
        return max(1, min(self.most_piece, len(self.tokens) // (2 * _HELD_OUT)))

    def train(self, layer: int, most: int) -> NDArray[np.float32]:
        """FFN inputs [tokens, d], at most so many, spread over the text."""
        return self._some(layer, most, ~self._is_held_out(self._index))

    def held_out_halves(self, layer: int, most: int
                        ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Every other held-out piece, and those between: to choose with, and to measure."""
        held_out = self._is_held_out(self._index)
        second = self._index // self.piece // _HELD_OUT % 2 == 1
        return (self._some(layer, most, held_out & ~second),
                self._some(layer, most, held_out & second))

    def held_out_pieces(self, most: int) -> list[NDArray[np.int64]]:
        """Token ids for the model to read, at most so many, cut to the same length each."""
        starts = np.arange(0, len(self.tokens), self.piece)
        starts = starts[self._is_held_out(starts)]
        length = min(self.piece, max(2, most // len(starts)))
        return [self.tokens[start:start + length] for start in starts
                if start + 1 < len(self.tokens)]

    def _is_held_out(self, index: NDArray[np.int64]) -> NDArray[np.bool_]:
        return index // self.piece % _HELD_OUT == _HELD_OUT - 1

    @property
    def _index(self) -> NDArray[np.int64]:
        return np.arange(len(self.tokens))

    def _some(self, layer: int, most: int, which: NDArray[np.bool_]) -> NDArray[np.float32]:
        index = np.flatnonzero(which)
        if len(index) > most:
            index = index[np.linspace(0, len(index) - 1, most).astype(np.int64)]
        return self.recording.read('bundle', layer)[index]
