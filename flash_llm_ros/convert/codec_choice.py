"""Which codec each section gets: the fewest bytes within a loss, or the least loss within bytes."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

_MOST_POINTS = 1 << 14      # of a frontier; sections of a kind are alike, so few sums differ


class Candidate(NamedTuple):
    """What a section would take in a codec, and what that would cost."""

    bytes: int
    divergence: float       # nats a token, measured with this section alone


@dataclass(frozen=True)
class Frontier:
    """Sums of all sections that no other choice beats in both; from the fewest bytes on.

    `bytes` int64 [n] rises and `divergences` float64 [n] falls; `chosen` int8 [n, sections] has the
    index of each section's candidate. Divergences of single sections add up.
    """

    bytes: NDArray[np.int64]
    divergences: NDArray[np.float64]
    chosen: NDArray[np.int8]

    @classmethod
    def of(cls, sections: Sequence[Sequence[Candidate]]) -> 'Frontier':
        """Section after section, each with all of its candidates; what is beaten goes at once."""
        found = cls(np.zeros(1, np.int64), np.zeros(1), np.zeros((1, 0), np.int8))
        for candidates in sections:
            found = found._with(candidates)
        return found

    def within_loss(self, loss: float) -> list[int]:
        """The fewest bytes whose divergence is at most `loss`, or else the least divergence."""
        enough = np.flatnonzero(self.divergences <= loss)
        return self.chosen[enough[0] if len(enough) else -1].tolist()

    def within_bytes(self, most: int) -> list[int]:
        """The least divergence in at most so many bytes; ValueError where there is none."""
        enough = np.flatnonzero(self.bytes <= most)
        if not len(enough):
            raise ValueError(f'{most} bytes are too few; the least is {self.bytes[0]}')
        return self.chosen[enough[-1]].tolist()

    def _with(self, candidates: Sequence[Candidate]) -> 'Frontier':
        count = len(candidates)
        sizes = np.add.outer(self.bytes, [each.bytes for each in candidates]).ravel()
        losses = np.add.outer(self.divergences, [each.divergence for each in candidates]).ravel()
        order = np.lexsort((losses, sizes))
        least = np.minimum.accumulate(losses[order])
        order = order[np.append(True, least[1:] < least[:-1])]
        if len(order) > _MOST_POINTS:
            order = order[np.linspace(0, len(order) - 1, _MOST_POINTS).astype(np.int64)]
        chosen = np.column_stack([self.chosen[order // count], (order % count).astype(np.int8)])
        return Frontier(sizes[order], losses[order], chosen)
