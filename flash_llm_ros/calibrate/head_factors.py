"""A low-rank sketch of the output head, for the hidden states that really occur."""

from collections.abc import Callable, Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
_RIDGE = 1e-3


def head_factors(parts: Callable[[], Iterable[Array]], normed: Array,
                 rank: int) -> tuple[Array, Iterator[Array]]:
    """Factors of W [vocabulary, d] with the least error of W normed.

    `parts()` reads W from the start, some rows at a time; it is called twice. Returns inner
    [rank, d] and the rows of outer [vocabulary, rank], some at a time. This is the truncated SVD
    of W L, where L L^T is the covariance of `normed` [tokens, d]. Each direction's size is shared
    out between both factors, so that both survive rounding.
    """
    x = normed.astype(np.float64)
    covariance = x.T @ x / len(x)
    ridge = _RIDGE * np.trace(covariance) / len(covariance)
    root = np.linalg.cholesky(covariance + ridge * np.eye(len(covariance)))
    narrow = root.astype(np.float32)
    gram = np.zeros_like(root)
    for rows in parts():
        whitened = rows @ narrow
        gram += whitened.T @ whitened
    sizes, vectors = np.linalg.eigh(gram)
    sizes, vectors = sizes[:-rank - 1:-1], vectors[:, :-rank - 1:-1]
    balance = np.maximum(sizes, 1e-12 * sizes[0]) ** 0.25
    inner = (np.linalg.solve(root.T, vectors) * balance).T
    outer = (root @ vectors / balance).astype(np.float32)
    return np.ascontiguousarray(inner, np.float32), (rows @ outer for rows in parts())
