"""The activation functions of feed-forward blocks; the core's own are in native/math."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]


def silu(z: Array, threshold: float) -> Array:
    """z times its sigmoid; `threshold` does not matter."""
    return z / (1 + np.exp(-np.clip(z, -60, 60)))


def relu(z: Array, threshold: float) -> Array:
    """z where it is greater than `threshold` (FATReLU, arXiv 2402.13516), else 0."""
    return np.where(z > threshold, z, np.float32(0))


@dataclass(frozen=True)
class Activation:
    function: Callable[[Array, float], Array]
    sparse: bool        # most of its values are exact zeros, so that a predictor may decide


ACTIVATIONS = {'silu': Activation(silu, sparse=False), 'relu': Activation(relu, sparse=True)}
