"""Every neuron of every layer: exact mode, and the prompts of the other modes."""

import numpy as np
from numpy.typing import NDArray

from flash_llm_ros.engine.memory.window import Window
from flash_llm_ros.engine.model.feed_forward.block import Array, FeedForwardBlock
from flash_llm_ros.store.flash_store import RESIDENT, FlashStore
from flash_llm_ros.store.geometry import DENSE_SECTIONS
from flash_llm_ros.store.resident_layout import attention_layout, up_bias


class DenseFeedForward(FeedForwardBlock):
    """Reads whole sections in a stream, in either layout."""

    mode = 'exact'

    def __init__(self, store: FlashStore, chunk: int) -> None:
        """`chunk`: the most tokens of a pass."""
        self._store, self._spec, self._chunk = store, store.manifest.model, chunk
        self._split = store.manifest.layout == 'split'
        self.active_neurons = self.total_neurons = 0

    def load(self) -> None:
        self.biases = _up_biases(self._store)

    def attach(self, window: Window) -> None:
        self._window = window
        if self._split:
            self.activations = np.zeros((self._chunk, self._spec.feed_forward.size), np.float32)

    def begin(self, dense: bool, last: bool) -> None:
        self._window.stream(DENSE_SECTIONS if self._split else ('bundle',), last)

    def run(self, layer: int, x: Array, out: Array, dense: bool) -> None:
        core, activation = self._window.core, self._spec.feed_forward.activation
        if self._split:
            core.gate_up_down(self._window.section('gate_up', layer),
                              self._window.section('down', layer), x,
                              self.activations[:len(x)], out, activation)
        else:
            core.bundled(self._window.section('bundle', layer), x, out, activation,
                         self.biases[layer], self._spec.feed_forward.relu_threshold)
        self.count(len(x) * self._spec.feed_forward.size, len(x))

    def count(self, active: int, tokens: int = 1) -> None:
        self.active_neurons += active
        self.total_neurons += tokens * self._spec.feed_forward.size


def _up_biases(store: FlashStore) -> list[NDArray[np.float32] | None]:
    """What is added to what a layer's up rows give, float32 [ffn]; None where nothing is."""
    spec = store.manifest.model
    if not spec.feed_forward.bias:
        return [None] * spec.layers
    with store.tensors(RESIDENT) as tensors:
        tensors.require(attention_layout(spec, store.manifest.resident))
        biases = [tensors.read(up_bias(layer)) for layer in range(spec.layers)]
        tensors.drop_page_cache()
    return biases
