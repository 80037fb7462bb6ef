"""The gated half of a feed-forward layer in NumPy."""

from collections.abc import Callable

import numpy as np

from flash_llm_ros.engine.core_arguments import check

Activation = Callable[[np.ndarray], np.ndarray]


def gated(x: np.ndarray, weights: np.ndarray, act: Activation) -> np.ndarray:
    """x [S, dim], weights [groups, bundles, rows, dim] -> activations [groups, S, bundles]."""
    gate = np.matmul(x, np.ascontiguousarray(weights[:, :, 0]).transpose(0, 2, 1))
    up = np.matmul(x, np.ascontiguousarray(weights[:, :, 1]).transpose(0, 2, 1))
    return act(gate) * up


def _silu(z: np.ndarray) -> np.ndarray:
    with np.errstate(over='ignore'):
        return z / (1 + np.exp(-z))


def _relu(z: np.ndarray) -> np.ndarray:
    return np.maximum(z, 0)


_ACTIVATIONS = {'silu': _silu, 'relu': _relu}


def activation_of(name: str) -> Activation:
    """'silu' or 'relu'; ValueError for another name."""
    check(name in _ACTIVATIONS, 'activation', name, "'silu' or 'relu'")
    return _ACTIVATIONS[name]
