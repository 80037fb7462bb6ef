"""A layer's short convolution (arXiv 2511.23404), its matrices sections of the neuron file."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from flash_llm_ros.engine.memory.window import Window
from flash_llm_ros.engine.model.attention_part import Array
from flash_llm_ros.engine.model.convolution_cache import ConvolutionCache


class CoreConvolution:
    """Takes the place of a layer's attention. Products are the core's, what is cheap is NumPy's.

    Tokens' results are the same bytes however they are divided among calls.
    """

    def __init__(self, window: Window, layer: int, cache: ConvolutionCache,
                 scratch: tuple[Array, NDArray[np.floating]], weights: Array,
                 norms: tuple[Array, Array]) -> None:
        """`weights` [d, taps]; `norms`: the layer's first one, and that of the block's input.

        `scratch`, which layers may share: [4, chunk, d], and [taps - 1 + chunk, d] as the cache.
        """
        self._core: Any = window.core
        self._in, self._out = (window.section(name, layer) for name in ('conv_in', 'conv_out'))
        self._cache, self._norms = cache, norms
        self._weights = np.ascontiguousarray(weights.T)
        floats, self._seen = scratch
        chunk, d = floats.shape[1:]
        self._normed, self._gates = floats[0], floats[1:].reshape(chunk, 3 * d)

    def convolved(self, tokens: int) -> Array:
        """What the last `run` multiplied with the layer's last matrix, [tokens, d]."""
        return self._normed[:tokens]

    def run(self, hidden: Array, position: int, residual: Array, ffn_input: Array) -> None:
        """As the core's attention: all float32 [tokens, d], of tokens from `position` on."""
        tokens, before = len(hidden), len(self._weights) - 1
        normed, gates = self._normed[:tokens], self._gates[:tokens]
        self._core.rms_norm(hidden, self._norms[0], normed)
        self._core.rows_dot(self._in, normed, gates)
        input_gate, output_gate, product = np.split(gates, 3, axis=1)
        product *= input_gate
        seen = self._seen[:before + tokens]
        self._cache.recall(position, seen[:before])
        seen[before:] = product
        self._cache.keep(position, seen)
        normed[:] = 0
        for tap, weights in enumerate(self._weights):
            np.multiply(seen[tap:tap + tokens], weights, out=product)
            normed += product
        normed *= output_gate
        residual[:] = hidden
        self._core.rows_dot(self._out, normed, residual, add=True)
        self._core.rms_norm(residual, self._norms[1], ffn_input)
