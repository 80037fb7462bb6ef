"""Means of few samples, drawn towards each other as far as they are uncertain."""

import numpy as np
from numpy.typing import NDArray

_LEAST = 1e-3                   # of the largest mean


def likely_means(samples: NDArray[np.float64]) -> NDArray[np.float64]:
    """The likely mean of each row of positive samples [rows, samples, two at least]; [rows].

    Empirical Bayes on logarithms (James and Stein 1961; Efron and Morris 1975): means that spread
    no more than their own errors make them spread become alike, and sure ones stay. An error that
    a sample has in all rows, a token that is hard to guess, is none: only ratios of rows matter.
    """
    means = samples.mean(axis=1)
    if means.max() <= 0:
        return np.ones(len(means))
    means = np.maximum(means, _LEAST * means.max())
    relative = samples / means[:, None]
    own = relative - relative.mean(axis=0)
    noise = own.var(axis=1, ddof=1) / samples.shape[1]
    logs = np.log(means)
    real = max(0.0, logs.var(ddof=1) - noise.mean()) if len(logs) > 1 else 0.0
    if real == 0:
        return np.full(len(means), np.exp(logs.mean()))
    return np.exp(logs.mean() + (logs - logs.mean()) * real / (real + noise))
