"""The activation functions of feed-forward blocks; what the core computes is in native/math."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]


def relu(z: Array, threshold: float) -> Array:
    """z where it is greater than `threshold` (FATReLU, arXiv 2402.13516), else 0."""
    return np.where(z > threshold, z, np.float32(0))


def relu2(z: Array, threshold: float) -> Array:
    """The square of that (squared ReLU, arXiv 2109.08668)."""
    return np.square(relu(z, threshold))


# Most of their values are exact zeros, so that a predictor may decide.
SPARSE: dict[str, Callable[[Array, float], Array]] = {'relu': relu, 'relu2': relu2}
ACTIVATIONS = ('silu', 'gelu', 'gelu_tanh', *SPARSE)
