"""A layer's neurons by contribution, and corrections for leaving out the last of them."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from flash_llm_ros.calibrate.tail_correction import LowRankMap, RidgeInputs
from flash_llm_ros.convert.ffn_weights import Array, FfnWeights
from flash_llm_ros.convert.neuron_order import Order, by_contribution

# Shares of a layer's neurons that it may leave out.
LEFT_OUT = (0.0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4)
_MEASURED = 8       # every eighth token measures what is fitted on the others


class LeadingLayer(NamedTuple):
    """For each share of LEFT_OUT: neurons used, the correction, and the squared error it leaves.

    Errors are mean squared lengths of what is missing of the layer's output, on tokens that the
    corrections were not fitted on.
    """

    order: Order
    widths: list[int]
    corrections: list[LowRankMap]
    errors: NDArray[np.float64]


def leading_layer(weights: FfnWeights, x: Array, rank: int) -> LeadingLayer:
    """`x` are FFN inputs, float32 [tokens, d]."""
    measured = np.arange(len(x)) % _MEASURED == _MEASURED - 1
    h = weights.activations(x)
    order = by_contribution(np.square(h).mean(axis=0), weights.down_norm)
    neurons = len(order)
    # Whole groups of bundles or not: what is read is what is used, but for a group at the end.
    widths = [max(1, round(neurons * (1 - share))) for share in LEFT_OUT]
    inputs = RidgeInputs(x[~measured])
    corrections, errors = [], []
    missing = np.zeros_like(x)
    for step, width in enumerate(widths):
        before = widths[step - 1] if step else neurons
        tail = order[width:before]
        missing += h[:, tail] @ weights.down[tail]
        correction = inputs.fit(missing[~measured], rank)
        left = missing[measured] - correction(x[measured])
        corrections.append(correction)
        errors.append(float(np.square(left, dtype=np.float64).sum() / max(measured.sum(), 1)))
    return LeadingLayer(order, widths, corrections, np.maximum.accumulate(errors))
