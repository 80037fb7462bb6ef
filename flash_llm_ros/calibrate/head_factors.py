"""A low-rank sketch of the output head, for the hidden states that really occur."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
_RIDGE = 1e-3


def head_factors(rows: Callable[[int, int], Array], count: int, normed: Array, rank: int,
                 rows_at_once: int = 8192) -> tuple[Array, Callable[[int, int], Array]]:
    """Factors of W [count, d] with the least error of W normed; `rows(start, stop)` reads W.

    Returns inner [rank, d] and a function that gives rows of outer [count, rank]. It is the
    truncated SVD of W L, where L L^T is the covariance of `normed` [tokens, d]; W is read twice
    and never whole. Each direction's size is shared out between both factors, so that both
    survive rounding.
    """
    x = normed.astype(np.float64)
    covariance = x.T @ x / len(x)
    ridge = _RIDGE * np.trace(covariance) / len(covariance)
    root = np.linalg.cholesky(covariance + ridge * np.eye(len(covariance)))
    narrow = root.astype(np.float32)
    gram = np.zeros_like(root)
    for start in range(0, count, rows_at_once):
        part = rows(start, min(start + rows_at_once, count)) @ narrow
        gram += part.T @ part
    sizes, vectors = np.linalg.eigh(gram)
    sizes, vectors = sizes[:-rank - 1:-1], vectors[:, :-rank - 1:-1]
    balance = np.maximum(sizes, 1e-12 * sizes[0]) ** 0.25
    inner = (np.linalg.solve(root.T, vectors) * balance).T
    outer = (root @ vectors / balance).astype(np.float32)
    return np.ascontiguousarray(inner, np.float32), lambda start, stop: rows(start, stop) @ outer
