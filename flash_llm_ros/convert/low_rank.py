"""Training-free predictors: the best low-rank factors for the inputs that really occur."""

import numpy as np
from numpy.typing import NDArray

from flash_llm_ros.convert.input_statistics import Array


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
