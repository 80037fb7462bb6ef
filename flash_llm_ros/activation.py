"""The activation functions of feed-forward blocks; what the core computes is in native/math."""

from collections.abc import Callable
import math

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
_ERF = np.frompyfunc(math.erf, 1, 1)


def silu(z: Array, threshold: float) -> Array:
    """z times its sigmoid; `threshold` does not matter."""
    return z / (1 + np.exp(-np.clip(z, -60, 60)))


def gelu(z: Array, threshold: float) -> Array:
    """z times the normal distribution's share below it; `threshold` does not matter."""
    return (z * (1 + _ERF(z / math.sqrt(2)).astype(np.float32)) / 2).astype(np.float32)


def gelu_tanh(z: Array, threshold: float) -> Array:
    """GELU by a hyperbolic tangent; `threshold` does not matter."""
    return z * (1 + np.tanh(math.sqrt(2 / math.pi) * (z + np.float32(0.044715) * z ** 3))) / 2


def relu(z: Array, threshold: float) -> Array:
    """z where it is greater than `threshold` (FATReLU, arXiv 2402.13516), else 0."""
    return np.where(z > threshold, z, np.float32(0))


def relu2(z: Array, threshold: float) -> Array:
    """The square of that (squared ReLU, arXiv 2109.08668)."""
    return np.square(relu(z, threshold))


def clamped_swiglu(z: Array, threshold: float) -> Array:
    """gpt-oss's, of a gate: at most 7, times a steeper sigmoid; `threshold` does not matter.

    The up value that it is multiplied with is kept within 7, too, and 1 is added to it.
    """
    z = np.minimum(z, np.float32(7))
    return z / (1 + np.exp(-np.float32(1.702) * np.maximum(z, -30)))


# Most of their values are exact zeros, so that a predictor may decide.
SPARSE: dict[str, Callable[[Array, float], Array]] = {'relu': relu, 'relu2': relu2}
ACTIVATIONS: dict[str, Callable[[Array, float], Array]] = {
    'silu': silu, 'gelu': gelu, 'gelu_tanh': gelu_tanh, 'clamped_swiglu': clamped_swiglu,
    **SPARSE}
