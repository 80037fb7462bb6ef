"""The first half of a feed-forward layer in NumPy: activations from inputs."""

from collections.abc import Callable
import math

import numpy as np

from flash_llm_ros.engine.core_arguments import check

Activation = Callable[[np.ndarray], np.ndarray]


def gated(x: np.ndarray, weights: np.ndarray, act: Activation) -> np.ndarray:
    """x [S, dim], weights [groups, bundles, rows, dim] -> activations [groups, S, bundles]."""
    gate = np.matmul(x, np.ascontiguousarray(weights[:, :, 0]).transpose(0, 2, 1))
    up = np.matmul(x, np.ascontiguousarray(weights[:, :, 1]).transpose(0, 2, 1))
    return act(gate) * up


def ungated(x: np.ndarray, weights: np.ndarray, act: Activation, bias: np.ndarray | None
            ) -> np.ndarray:
    """As ``gated``, with one up row a bundle and its bias [groups * bundles], None: 0."""
    up = np.matmul(x, np.ascontiguousarray(weights[:, :, 0]).transpose(0, 2, 1))
    if bias is not None:
        up += bias.reshape(len(weights), 1, -1)
    return act(up)


def bundle_activations(x: np.ndarray, weights: np.ndarray, act: Activation,
                       bias: np.ndarray | None) -> np.ndarray:
    """As ``gated`` for bundles that end with a down row: [gate,] up, down; bias [bundles]."""
    return gated(x, weights, act) if weights.shape[2] == 3 else ungated(x, weights, act, bias)


def bias_part(bias: np.ndarray | None, start: int, weights: np.ndarray) -> np.ndarray | None:
    """The biases of decoded bundles, weights [groups, bundles, rows, dim], from ``start`` on."""
    return None if bias is None else bias[start:start + weights.shape[0] * weights.shape[1]]


def scatter(out: np.ndarray, start: int, values: np.ndarray) -> None:
    """Put [groups, S, bundles] into out [S, all bundles] from bundle ``start`` on."""
    groups, tokens, bundles = values.shape
    flat = values.transpose(1, 0, 2).reshape(tokens, groups * bundles)
    out[:, start:start + groups * bundles] = flat


def _silu(z: np.ndarray) -> np.ndarray:
    with np.errstate(over='ignore'):
        return z / (1 + np.exp(-z))


def activation_of(name: str, threshold: float = 0.0) -> Activation:
    """'silu', or 'relu', which is 0 up to `threshold`; ValueError for another name."""
    check(name in ('silu', 'relu'), 'activation', name, "'silu' or 'relu'")
    check(math.isfinite(threshold) and threshold >= 0, 'threshold', threshold,
          'a number from 0 on')
    if name == 'silu':
        return _silu
    return lambda z: np.where(z > threshold, z, np.float32(0))
