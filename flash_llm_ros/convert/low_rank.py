"""Training-free predictors: the best low-rank factors for the inputs that really occur."""

import numpy as np
from numpy.typing import NDArray

_RIDGE = 1e-3

Array = NDArray[np.float32]


class InputStatistics:
    """The inputs' covariance C and its root L, C = L L^T, float64 [d, d], over many tokens."""

    def __init__(self, size: int) -> None:
        self._sum = np.zeros((size, size))
        self._tokens = 0

    def add(self, inputs: Array) -> None:
        """Inputs [tokens, d]."""
        self._sum += (inputs.T @ inputs).astype(np.float64)
        self._tokens += len(inputs)

    def root(self) -> NDArray[np.float64]:
        covariance = self._sum / self._tokens
        ridge = _RIDGE * np.trace(covariance) / len(covariance)
        return np.linalg.cholesky(covariance + ridge * np.eye(len(covariance)))


class LowRankFactors:
    """For W, float32 [n, d], the factors of every rank that minimise ``|X (W - outer inner)^T|``.

    This is the truncated SVD of W L: its right singular vectors come from an eigendecomposition
    of [d, d].
    """

    def __init__(self, weights: Array, root: NDArray[np.float64]) -> None:
        self._weights, self._root = weights, root
        gram = np.zeros(root.shape)
        for start in range(0, len(weights), 1024):
            part = weights[start:start + 1024]
            gram += part.T @ part
        _, vectors = np.linalg.eigh(root.T @ gram @ root)
        self._basis = vectors[:, ::-1]                          # largest eigenvalues first

    def of_rank(self, rank: int) -> tuple[Array, Array]:
        """outer [n, rank] and inner [rank, d]."""
        basis = self._basis[:, :rank]
        outer = self._weights @ (self._root @ basis).astype(np.float32)
        inner = np.linalg.solve(self._root.T, basis).T          # basis^T root^-1
        return outer, np.ascontiguousarray(inner, np.float32)
