"""Mode aggressive: the leading neurons of every layer, and a small correction for the others."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from flash_llm_ros.engine.memory.window import Window
from flash_llm_ros.engine.tail_correction import TailCorrection
from flash_llm_ros.model_spec import ModelSpec

Array = NDArray[np.float32]


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
        core, width = self._window.core, self._widths[layer]
        activation = self._spec.feed_forward.activation
        h = self._activations[:len(x) * width].reshape(len(x), width)
        core.gate_up(self._window.section('gate_up', layer), x, h, activation)
        core.add_rows(self._window.section('down', layer), h, out)
        self._corrections[layer].add(x, out)
        self.active_neurons += len(x) * width
        self.total_neurons += len(x) * self._spec.feed_forward.size
