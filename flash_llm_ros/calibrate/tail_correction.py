"""What neurons that are left out would have added, estimated from the FFN's input."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
_RIDGE = 1e-2


class LowRankMap(NamedTuple):
    """x -> outer inner x + mean; float32 [r, d], [d, r], [d]."""

    inner: Array
    outer: Array
    mean: Array

    def __call__(self, x: Array) -> Array:
        """float32 [tokens, d] -> [tokens, d]."""
        return x @ self.inner.T @ self.outer.T + self.mean


class RidgeInputs:
    """The inputs of a regression, factored once for many targets."""

    def __init__(self, x: Array) -> None:
        """`x` is float32 [tokens, d]."""
        self._mean = x.mean(axis=0, dtype=np.float64)
        self._centred = (x - self._mean).astype(np.float32)
        covariance = (self._centred.T @ self._centred).astype(np.float64)
        ridge = _RIDGE * np.trace(covariance) / len(covariance)
        self._root = np.linalg.cholesky(covariance + ridge * np.eye(len(covariance)))

    def fit(self, target: Array, rank: int) -> LowRankMap:
        """The map of this rank with the least squared error on `target` [tokens, d], plus ridge.

        Reduced-rank ridge regression (Izenman 1975): the full solution, projected on the leading
        directions of what it predicts.
        """
        mean = target.mean(axis=0, dtype=np.float64)
        product = self._centred.T @ (target - mean).astype(np.float32)
        predicted = np.linalg.solve(self._root, product.astype(np.float64))
        _, vectors = np.linalg.eigh(predicted.T @ predicted)
        outer = vectors[:, -rank:]
        inner = np.linalg.solve(self._root.T, predicted @ outer).T
        return LowRankMap(inner.astype(np.float32), np.ascontiguousarray(outer, np.float32),
                          (mean - outer @ (inner @ self._mean)).astype(np.float32))
