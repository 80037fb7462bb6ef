"""What the forward pass and the memory plan ask of a feed-forward block, whatever its kind."""

from abc import ABC, abstractmethod

import numpy as np
from numpy.typing import NDArray

from flash_llm_ros.engine.memory.window import Window
from flash_llm_ros.engine.plan import Part
from flash_llm_ros.store.flash_store import FlashStore

Array = NDArray[np.float32]


class FeedForwardBlock(Part, ABC):
    """The blocks of all layers: sections of the neuron file, of which a token uses some or all.

    The life of one: `load`, `attach` to a window, then passes of `begin` and a `run` a layer.
    """

    mode: str                       # of EngineConfig, that chooses this kind
    grouped: tuple[str, ...] = ()   # sections that generated tokens read group by group
    one_by_one = False              # generated tokens cannot share a pass
    active_neurons: int             # used so far, and out of how many
    total_neurons: int

    def __init__(self, store: FlashStore, chunk: int) -> None:
        """`chunk`: the most tokens of a pass."""

    @abstractmethod
    def attach(self, window: Window) -> None:
        """Compute on this window from now on; allocates."""

    @abstractmethod
    def begin(self, dense: bool, last: bool) -> None:
        """Announce a pass over all layers; `last`: the output head follows it."""

    @abstractmethod
    def run(self, layer: int, x: Array, out: Array, dense: bool) -> NDArray[np.uint8] | None:
        """Add one layer's block of x to `out`, both float32 [tokens, d].

        `out` is whatever the caller adds to, the residual stream as a rule. `dense` uses every
        neuron. Returns 1 for each neuron, or expert, that was used, uint8 [ffn] or [experts], valid
        until the next call; None: all neurons, of a block that every token uses.
        """
