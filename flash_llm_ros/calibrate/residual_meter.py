"""What the residual stream holds while the model reads text: its size, and its end."""

import numpy as np
from numpy.typing import NDArray

from flash_llm_ros.convert.block_stand_in import BlockStandIn
from flash_llm_ros.engine.model.feed_forward.block import FeedForwardBlock

Array = NDArray[np.float32]


class ResidualMeter(BlockStandIn):
    """Stands before an engine's feed-forward block and changes nothing."""

    def __init__(self, inner: FeedForwardBlock, layers: int) -> None:
        super().__init__(inner)
        self._squares = [[] for _ in range(layers)]
        self._last: list[Array] = []

    def run(self, layer: int, x: Array, out: Array, dense: bool) -> None:
        self._inner.run(layer, x, out, dense)
        self._squares[layer].append(np.square(out).sum(axis=1))
        if layer == len(self._squares) - 1:
            self._last.append(out.copy())

    @property
    def squares(self) -> NDArray[np.float64]:
        """Median squared length of the residual stream after each layer, [layers].

        Of the mean, single tokens make most: the first of a text may be a thousand times as long.
        """
        return np.array([np.median(np.concatenate(parts)) for parts in self._squares])

    @property
    def last(self) -> Array:
        """What enters the final norm, [tokens, d]."""
        return np.concatenate(self._last)
