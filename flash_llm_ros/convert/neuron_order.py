"""Orders of a layer's neurons on flash: by contribution, by frequency, by co-activation."""

import numpy as np
from numpy.typing import NDArray

Order = NDArray[np.int32]

ORDERS = ('contribution', 'frequency', 'coactivation')


def by_contribution(mean_squares: NDArray[np.floating], down_norms: NDArray[np.floating]) -> Order:
    """Largest first: the root mean square of h times the norm of the down column; both [ffn]."""
    return _largest_first(np.sqrt(mean_squares) * down_norms)


def by_frequency(active: NDArray[np.bool_]) -> Order:
    """The most often active ones first; `active` is [tokens, ffn]."""
    return _largest_first(active.sum(axis=0))


def by_coactivation(active: NDArray[np.bool_]) -> Order:
    """A chain of friends: from the most frequent neuron on, always the one that is most often
    active together with the last one, among those not placed yet; `active` is [tokens, ffn].

    Ties go to the more frequent neuron, then to the first. The paper's bundling by co-activation
    (arXiv 2312.11514, section 3.2) without its copies of hot neurons.
    """
    seen = active.astype(np.float32)
    together = seen.T @ seen            # exact: whole numbers below 2 ** 24
    counts = np.diag(together).copy()
    rank = np.empty(len(counts), np.float32)
    rank[_largest_first(counts)] = np.arange(len(counts), 0, -1) / (len(counts) + 1)
    together += rank                    # ties: less than one token
    order = np.empty(len(counts), np.int32)
    order[0] = np.argmax(counts + rank)
    free = np.ones(len(counts), bool)
    for place in range(1, len(order)):
        free[order[place - 1]] = False
        order[place] = np.argmax(np.where(free, together[order[place - 1]], -1))
    return order


def _largest_first(score: NDArray[np.generic]) -> Order:
    return np.argsort(-score.astype(np.float64), kind='stable').astype(np.int32)
