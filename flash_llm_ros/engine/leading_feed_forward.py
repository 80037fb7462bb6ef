"""Mode aggressive: the leading neurons of every layer, and a small correction for the others."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from flash_llm_ros.engine.window import Window
from flash_llm_ros.model_spec import ModelSpec
from flash_llm_ros.store.aggressive import CORRECTIONS
from flash_llm_ros.store.flash_store import FlashStore
from flash_llm_ros.store.tensor_file import TensorFile

Array = NDArray[np.float32]


class TailCorrection:
    """What the neurons that are left out would have added, as a low-rank function of x."""

    def __init__(self, inner: Array, outer: Array, mean: Array) -> None:
        """`inner` [r, d] and `outer` [d, r] are float32, as is `mean` [d]."""
        self._inner, self._outer, self._mean = inner.T, outer.T, mean

    def add(self, x: Array, out: Array) -> None:
        """out += outer inner x + mean, for x and out [tokens, d]."""
        out += (x @ self._inner) @ self._outer
        out += self._mean


def correction_names(share: str, layer: int) -> list[str]:
    """Tensors of a layer's correction, in the order of TailCorrection's arguments."""
    return [f'{share}.{layer}.{part}' for part in ('inner', 'outer', 'mean')]


def load_corrections(store: FlashStore, share: str) -> list[TailCorrection]:
    """One correction a layer, resident; raises FlashLlmError(STORE_CORRUPT, READ_FAILED)."""
    with TensorFile(store.path / CORRECTIONS) as tensors:
        found = [TailCorrection(*map(tensors.read, correction_names(share, layer)))
                 for layer in range(store.manifest.model.layers)]
        tensors.drop_page_cache()
    return found


def correction_bytes(store: FlashStore, share: str) -> int:
    with TensorFile(store.path / CORRECTIONS) as tensors:
        return sum(tensors.nbytes(name) for layer in range(store.manifest.model.layers)
                   for name in correction_names(share, layer))


class LeadingFeedForward:
    """A narrower model, of the split layout: prompts and answers use the same neurons."""

    def __init__(self, window: Window, spec: ModelSpec, chunk: int, widths: Sequence[int],
                 corrections: list[TailCorrection]) -> None:
        self._window, self._spec = window, spec
        self._widths, self._corrections = widths, corrections
        self._activations = np.zeros(chunk * max(widths), np.float32)
        self.active_neurons = self.total_neurons = 0

    def begin(self, dense: bool, last: bool) -> None:
        self._window.stream(('gate_up', 'down'), head=False)     # rows of it are read one by one

    def run(self, layer: int, x: Array, out: Array, dense: bool) -> None:
        core, activation, width = self._window.core, self._spec.activation, self._widths[layer]
        h = self._activations[:len(x) * width].reshape(len(x), width)
        core.gate_up(self._window.section('gate_up', layer), x, h, activation)
        core.add_rows(self._window.section('down', layer), h, out)
        self._corrections[layer].add(x, out)
        self.active_neurons += len(x) * width
        self.total_neurons += len(x) * self._spec.ffn_size
