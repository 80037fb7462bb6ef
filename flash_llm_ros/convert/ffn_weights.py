"""A layer's feed-forward matrices as its store holds them, and what they make of inputs."""

import numpy as np
from numpy.typing import NDArray

from flash_llm_ros.store.flash_store import RESIDENT
from flash_llm_ros.store.manifest import Manifest
from flash_llm_ros.store.neuron_reader import NeuronReader
from flash_llm_ros.store.resident_layout import up_bias
from flash_llm_ros.store.tensor_file import TensorFile

Array = NDArray[np.float32]


class FfnWeights:
    """float32 [ffn, d]: gate and up rows, down columns; and the columns' norms [ffn].

    `gate` is what the activation function takes. In a block without gate these are the up rows,
    `up` is None and `bias` [ffn] is what is added to them, or None.
    """

    def __init__(self, reader: NeuronReader, manifest: Manifest, layer: int) -> None:
        self._spec = spec = manifest.model
        self.up: Array | None = None
        self.bias: Array | None = None
        if manifest.layout == 'split':
            bundles = reader.bundles('gate_up', layer)
            self.gate, self.up = bundles[:, 0], bundles[:, 1]
            self.down = reader.bundles('down', layer)[:, 0].T
        else:
            bundles = reader.bundles('bundle', layer)
            self.gate, self.down = bundles[:, 0], bundles[:, -1]
            self.up = bundles[:, 1] if spec.feed_forward.gated else None
        if spec.feed_forward.bias:
            with TensorFile(reader.store.path / RESIDENT) as tensors:
                self.bias = tensors.read(up_bias(layer))
        self.down_norm = np.linalg.norm(self.down, axis=1).astype(np.float32)

    def activations(self, x: Array) -> Array:
        """h, what the down columns are multiplied with; float32 [tokens, ffn]."""
        h = self._spec.feed_forward.activate(self.gates(x))
        return h if self.up is None else h * (x @ self.up.T)

    def gates(self, x: Array) -> Array:
        """What the activation function is given; float32 [tokens, ffn], or [ffn] of one input."""
        gate = x @ self.gate.T
        return gate if self.bias is None else gate + self.bias

    def contributions(self, x: Array) -> Array:
        """abs(h) times the norm of the down column, float32 [tokens, ffn]."""
        return np.abs(self.activations(x)) * self.down_norm
