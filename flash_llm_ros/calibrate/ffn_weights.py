"""A layer's feed-forward matrices as its store holds them, and what they make of inputs."""

import numpy as np
from numpy.typing import NDArray

from flash_llm_ros.model_spec import ModelSpec
from flash_llm_ros.store.manifest import Manifest
from flash_llm_ros.store.neuron_reader import NeuronReader

Array = NDArray[np.float32]


class FfnWeights:
    """float32 [ffn, d]: gate and up rows, down columns; and the columns' norms [ffn]."""

    def __init__(self, reader: NeuronReader, manifest: Manifest, layer: int) -> None:
        if manifest.layout == 'split':
            bundles = reader.bundles('gate_up', layer)
            self.gate, self.up = bundles[:, 0], bundles[:, 1]
            self.down = reader.bundles('down', layer)[:, 0]
        else:
            bundles = reader.bundles('bundle', layer)
            self.gate, self.up, self.down = bundles[:, 0], bundles[:, 1], bundles[:, 2]
        self.down_norm = np.linalg.norm(self.down, axis=1).astype(np.float32)
        self._spec = manifest.model

    def activations(self, x: Array) -> Array:
        """h, what the down columns are multiplied with; float32 [tokens, ffn]."""
        return gated(x @ self.gate.T, x @ self.up.T, self._spec)

    def contributions(self, x: Array) -> Array:
        """abs(h) times the norm of the down column, float32 [tokens, ffn]."""
        return np.abs(self.activations(x)) * self.down_norm


def gated(gate: Array, up: Array, spec: ModelSpec) -> Array:
    """The activation function of `gate`, times `up`."""
    if spec.activation == 'relu':
        return np.maximum(gate, 0) * up
    return gate / (1 + np.exp(-np.clip(gate, -60, 60))) * up
