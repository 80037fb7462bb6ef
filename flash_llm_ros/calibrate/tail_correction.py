"""What neurons that are left out would have added, estimated from the FFN's input."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
_RIDGE = 1e-2
_ITERATIONS = 12


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
        root = np.linalg.cholesky(covariance + ridge * np.eye(len(covariance)))
        self._whiten = np.linalg.inv(root).astype(np.float32)

    def fit(self, target: Array, rank: int) -> LowRankMap:
        """The map of this rank with the least squared error on `target` [tokens, d], plus ridge.

        Reduced-rank ridge regression (Izenman 1975): the full solution, projected on the leading
        directions of what it predicts.
        """
        mean = target.mean(axis=0, dtype=np.float64)
        predicted = self._whiten @ (self._centred.T @ (target - mean).astype(np.float32))
        outer = _leading_directions(predicted, rank)
        inner = (self._whiten.T @ (predicted @ outer)).T
        return LowRankMap(np.ascontiguousarray(inner), outer,
                          (mean - outer @ (inner @ self._mean)).astype(np.float32))


def _leading_directions(matrix: Array, rank: int) -> Array:
    """The first right singular vectors, float32 [columns, rank], by orthogonal iteration.

    An eigendecomposition takes a hundred times as long for a rank that is a hundredth of the width.
    """
    width = min(matrix.shape[1], rank + 8)
    basis = np.random.default_rng(0).standard_normal((matrix.shape[1], width)).astype(np.float32)
    for _ in range(_ITERATIONS):
        basis = np.linalg.qr(matrix.T @ (matrix @ basis))[0]
    _, _, turn = np.linalg.svd(matrix @ basis, full_matrices=False)
    return np.ascontiguousarray((basis @ turn.T)[:, :rank])
