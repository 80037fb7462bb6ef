"""What a predictor is worth on tokens that it was not made from, and at which threshold."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from flash_llm_ros.convert.ffn_weights import Array, FfnWeights
from flash_llm_ros.convert.predictor import Predictor

# Share of a token's squared contributions to a layer that its predictor may leave out, in the mean
# over tokens. Squares, because the error of the layer's output follows them: of predictors that
# lose as much contribution, those that lose it in few large pieces cost far more perplexity.
LOSS = 0.0003


@dataclass(frozen=True)
class Quality:
    """A predictor's threshold, and shares of 1 on tokens that it was not made from."""

    threshold: float
    recall: float               # of the contribution
    precision: float            # of the predicted neurons
    loaded: float               # of all neurons
    zeros: float                # of all activations

    @classmethod
    def of(cls, threshold: float, contributions: Array, chosen: NDArray[np.bool_]) -> 'Quality':
        """Contributions of neurons, from 0 on, and whether they are predicted: [tokens, ffn]."""
        total = float(contributions.sum(dtype=np.float64))
        hits = float(contributions.sum(where=chosen, dtype=np.float64))
        right = int((chosen & (contributions > 0)).sum())
        return cls(threshold, hits / total if total else 1.0, right / max(int(chosen.sum()), 1),
                   float(chosen.mean()), float((contributions == 0).mean()))


class Judge:
    """Of one layer's predictors: what their misses may contribute is bounded."""

    def __init__(self, weights: FfnWeights, choosing: Array, held_out: Array) -> None:
        """FFN inputs [tokens, d]: to find thresholds with, and to measure on."""
        self._choosing, self._held_out = choosing, held_out
        losses = np.square(weights.contributions(choosing))
        losses /= np.maximum(losses.sum(axis=1, keepdims=True), np.finfo(np.float32).tiny)
        self._losses = losses.ravel()
        self._contributions = weights.contributions(held_out)

    def __call__(self, predictor: Predictor) -> Quality:
        scores = predictor.scores(self._choosing).ravel()
        order = np.argsort(scores)
        lost = np.cumsum(self._losses[order], dtype=np.float64)
        last = np.searchsorted(lost, LOSS * lost[-1], side='right') - 1
        threshold = float(scores[order[max(last, 0)]])
        return Quality.of(threshold, self._contributions,
                          predictor.scores(self._held_out) > threshold)
