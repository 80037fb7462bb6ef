"""What the forward pass and the memory plan ask of attention, whoever computes it."""

from abc import ABC, abstractmethod
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from flash_llm_ros.engine.memory.window import Window
from flash_llm_ros.engine.plan import Part, PlanRow
from flash_llm_ros.store.flash_store import FlashStore

Array = NDArray[np.float32]


def longer_contexts(context: int, most: int, cache_bytes: Callable[[int], int]) -> str:
    """What a KV cache for twice the tokens would take, and for the most of a model, for people."""
    longer = [each for each in sorted({min(2 * context, most), most}) if each > context]
    now = cache_bytes(context)
    return ', '.join(f'{(cache_bytes(each) - now) / 1e6:.1f} MB more for {each}'
                     for each in longer) or 'the model was trained for no more'


class AttentionPart(Part, ABC):
    """Norm, attention and norm of every layer, the KV cache, and the stream between layers.

    The life of one: `load`, `allocate`, `attach` to a window, then `run` a layer.
    """

    cache_type: str     # of the KV cache's numbers

    def __init__(self, store: FlashStore, context: int, chunk: int) -> None:
        """`context`: tokens of the KV cache; `chunk`: the most tokens of a pass."""
        self._store, self.context, self._chunk = store, context, chunk
        self._spec = store.manifest.model

    @abstractmethod
    def cache_bytes(self, context: int) -> int:
        """Of a KV cache for so many tokens."""

    def cache_row(self) -> PlanRow:
        """The KV cache in the plan, and what a longer context would take."""
        return PlanRow('KV cache', self.cache_bytes(self.context),
                       f'{self.context} tokens in {self.cache_type}; '
                       + longer_contexts(self.context, self._spec.max_context, self.cache_bytes))

    def allocate(self) -> None:
        """Allocate and touch the KV cache and the buffers; nothing grows afterwards."""
        spec, chunk = self._spec, self._chunk
        # A layer reads one of these and writes the other, the next layer the other way round.
        self._hidden = np.zeros((2, chunk, spec.hidden_size), np.float32)
        self._ffn_input = np.zeros((chunk, spec.hidden_size), np.float32)

    def attach(self, window: Window) -> None:
        """Compute with this window's sections from now on."""

    def hidden(self, layer: int, tokens: int) -> Array:
        """What enters layer `layer` (spec.layers: the final norm), float32 [tokens, d]."""
        return self._hidden[layer % 2, :tokens]

    @abstractmethod
    def run(self, layer: int, tokens: int, position: int) -> tuple[Array, Array]:
        """Attention of `tokens` tokens from `position` on.

        Returns the FFN's input and what the FFN's output is to be added to, both float32
        [tokens, d]: the residual stream, which is `hidden(layer + 1, tokens)`, or zeros where the
        output has a norm of its own before it is added there.
        """

    def section_inputs(self, layer: int, tokens: int) -> dict[str, Array]:
        """What the layer's sections of attention were multiplied with by the `run` before.

        By name, float32 [tokens, row values]; allocated anew, for work on a store. None of graphs.
        """
        return {}

    @abstractmethod
    def rows(self, count: int) -> list[memoryview]:
        """The bytes of the first `count` tokens' keys and values, in their place."""

    def reach(self, count: int, end: int) -> int:
        """Behind how many of the first `count` tokens others can come, once `end` have come.

        That is, all that these see is there.
        """
        return count

    @abstractmethod
    def final_norm(self, first: int, end: int) -> Array:
        """What the head is given of these tokens of the last pass, float32 [end - first, d]."""
