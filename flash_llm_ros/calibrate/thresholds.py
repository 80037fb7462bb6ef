"""Activation thresholds of gated-SiLU layers, and how they are shared out over the layers.

Thresholds on abs(h) lose less than thresholds on the contribution, abs(h) times the norm of the
down column, at the same share left out, though what the layer's output lacks is a little more.
"""

import numpy as np
from numpy.typing import NDArray

from flash_llm_ros.convert.ffn_weights import Array, FfnWeights

SPARSITIES = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
STEP = 0.05
SHARES = np.round(np.arange(0, 1, STEP), 2)     # of a layer's neurons that may be left out
_PERCENT = np.arange(0.01, 1, 0.01)


def size_quantiles(activations: Array) -> NDArray[np.float64]:
    """The sizes below which 1, 2 ... 99 % of the activations stay, float64 [99]."""
    return np.quantile(np.abs(activations), _PERCENT)


def threshold(quantiles: NDArray[np.float64], share: float) -> float:
    """What leaves out this share; nothing but zeros at 0."""
    return float(np.interp(share, [0, *_PERCENT], [0, *quantiles]))


def output_errors(weights: FfnWeights, x: Array,
                  quantiles: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean squared length of what a layer's output lacks at each of SHARES, float64 [shares]."""
    h = weights.activations(x)
    sizes = np.abs(h)
    limits = [threshold(quantiles, share) for share in SHARES]
    lacks, errors = np.zeros((len(x), weights.down.shape[1]), np.float32), []
    for low, high in zip([-1.0, *limits[:-1]], limits, strict=True):
        # What was left out before stays left out; few neurons are added each time.
        lacks += (h * ((sizes > low) & (sizes <= high))) @ weights.down
        errors.append(float(np.square(lacks).sum(axis=1).mean()))
    return np.array(errors)


def share_out(losses: NDArray[np.float64], mean: float) -> NDArray[np.float64]:
    """Shares of SHARES, one a layer, of this mean and the least sum of losses; float64 [layers].

    `losses` is [layers, shares], one for each of SHARES. Layers have as many neurons each, and
    their losses are taken to add up. TEAL (arXiv 2408.14690) goes from block to block greedily;
    this is dynamic programming over the layers, which finds the least sum itself.
    """
    layers, choices = losses.shape
    units = round(mean / STEP * layers)
    best = np.full(units + 1, np.inf)           # least loss by units left out so far
    best[0] = 0
    chosen = np.zeros((layers, units + 1), np.int64)
    for layer in range(layers):
        found = np.full(units + 1, np.inf)
        for choice in range(min(choices, units + 1)):
            total = best[:units + 1 - choice] + losses[layer, choice]
            better = total < found[choice:]
            found[choice:][better] = total[better]
            chosen[layer, choice:][better] = choice
        best = found
    shares = np.empty(layers)
    for layer in range(layers - 1, -1, -1):
        shares[layer] = SHARES[chosen[layer, units]]
        units -= chosen[layer, units]
    return shares
