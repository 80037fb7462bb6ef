"""Which inputs of a matrix occur together."""

import numpy as np
from numpy.typing import NDArray

_RIDGE = 1e-3

Array = NDArray[np.float32]


class InputStatistics:
    """The inputs' covariance C, float64 [d, d], over many tokens."""

    def __init__(self, size: int) -> None:
        self._sum = np.zeros((size, size))
        self._tokens = 0

    def add(self, inputs: Array) -> None:
        """Inputs [tokens, d]."""
        self._sum += (inputs.T @ inputs).astype(np.float64)
        self._tokens += len(inputs)

    def root(self) -> NDArray[np.float64]:
        """L, lower triangular, C = L L^T."""
        covariance = self._sum / self._tokens
        covariance.flat[::len(covariance) + 1] += _RIDGE * np.trace(covariance) / len(covariance)
        return np.linalg.cholesky(covariance)
