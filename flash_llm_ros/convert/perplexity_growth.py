"""How much perplexity grows, and how certain that is."""

from dataclasses import dataclass
import math

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Growth:
    """The mean difference of a token's loss from exact mode's on the same token, in nats.

    Its standard error is a fraction of the perplexities' own: a token that is hard to guess is so
    in both.
    """

    nats: float
    error: float

    @classmethod
    def of(cls, losses: NDArray[np.float64], exact: NDArray[np.float64]) -> 'Growth':
        """Of losses [tokens], two at least, and exact mode's of the same tokens."""
        differences = losses - exact
        return cls(float(differences.mean()),
                   float(differences.std(ddof=1) / math.sqrt(len(differences))))

    @property
    def relative(self) -> float:
        """What perplexity is multiplied with."""
        return math.exp(self.nats)

    @property
    def relative_error(self) -> float:
        return self.relative * self.error
