"""Training-free predictors: the best low-rank factors for the inputs that really occur."""

import numpy as np
from numpy.typing import NDArray

_RIDGE = 1e-3


def low_rank_factors(weights: NDArray[np.float32], inputs: NDArray[np.float32],
                     rank: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Factors outer [n, rank] and inner [rank, d] that minimise |X (W - outer inner)^T|.

    `weights` is W, float32 [n, d]; `inputs` is X, [tokens, d]. With the inputs' covariance
    C = L L^T this is the truncated SVD of W L: its right singular vectors come from an
    eigendecomposition of [d, d].
    """
    x = inputs.astype(np.float64)
    covariance = x.T @ x / len(x)
    ridge = _RIDGE * np.trace(covariance) / len(covariance)
    root = np.linalg.cholesky(covariance + ridge * np.eye(len(covariance)))
    whitened = weights.astype(np.float64) @ root
    _, vectors = np.linalg.eigh(whitened.T @ whitened)
    basis = vectors[:, :-rank - 1:-1]                       # of the largest eigenvalues
    outer = whitened @ basis
    inner = np.linalg.solve(root.T, basis).T                # basis^T root^-1
    return outer.astype(np.float32), np.ascontiguousarray(inner, np.float32)
