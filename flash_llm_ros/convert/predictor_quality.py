"""What a predictor is worth on tokens that it was not made from, and at which thresholds."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from flash_llm_ros.calibrate.threshold_search import FoundThresholds
from flash_llm_ros.convert.ffn_weights import Array, FfnWeights
from flash_llm_ros.convert.predictor import Predictor

# Share of a token's squared contributions to a ReLU layer that its predictor may leave out, in the
# mean over tokens. Squares, because the error of the layer's output follows them: of predictors
# that lose as much contribution, those that lose it in few large pieces cost far more perplexity.
RELU_LOSS = 0.0003


@dataclass(frozen=True)
class LayerSamples:
    """FFN inputs of one layer, [tokens, d]: to find thresholds with, and to measure on."""

    thresholds: Array
    held_out: Array


@dataclass(frozen=True)
class Quality:
    """Of a predictor, on tokens that it was not made from; shares of 1."""

    recall: float               # of the active contribution
    precision: float            # of the predicted neurons
    kept: float                 # of all contribution
    loaded: float               # of all neurons

    @classmethod
    def of(cls, contributions: Array, active: NDArray[np.bool_],
           chosen: NDArray[np.bool_]) -> 'Quality':
        """All [tokens, ffn]."""
        total = float(contributions.sum(dtype=np.float64))
        wanted = float(contributions.sum(where=active, dtype=np.float64))
        hits = float(contributions.sum(where=active & chosen, dtype=np.float64))
        kept = float(contributions.sum(where=chosen, dtype=np.float64))
        return cls(hits / wanted if wanted else 1.0,
                   float((active & chosen).sum() / max(chosen.sum(), 1)),
                   kept / total if total else 1.0, float(chosen.mean()))


@dataclass(frozen=True)
class Judged:
    """A predictor's thresholds, one for each sparsity, and its quality at the default one."""

    thresholds: list[float]
    quality: Quality


def judge_split(weights: FfnWeights, samples: LayerSamples, found: FoundThresholds,
                layer: int) -> Callable[[Predictor], Judged]:
    """Gated-SiLU layers: as many neurons are predicted as are active."""
    limit, share = found.at_default(layer)
    shares = [layers[layer] for layers in found.shares.values()]
    sizes = np.abs(weights.activations(samples.held_out))
    active, truth = sizes > limit, sizes * weights.down_norm

    def judge(predictor: Predictor) -> Judged:
        *thresholds, default = np.quantile(predictor.scores(samples.thresholds), [*shares, share])
        chosen = predictor.scores(samples.held_out) > default
        return Judged(thresholds, Quality.of(truth, active, chosen))

    return judge


def judge_bundled(weights: FfnWeights, samples: LayerSamples) -> Callable[[Predictor], Judged]:
    """ReLU layers: the predictor decides, so what its misses may contribute is bounded."""
    losses = np.square(weights.contributions(samples.thresholds))
    losses /= np.maximum(losses.sum(axis=1, keepdims=True), np.finfo(np.float32).tiny)
    truth = weights.contributions(samples.held_out)

    def judge(predictor: Predictor) -> Judged:
        scores = predictor.scores(samples.thresholds).ravel()
        order = np.argsort(scores)
        lost = np.cumsum(losses.ravel()[order], dtype=np.float64)
        last = np.searchsorted(lost, RELU_LOSS * lost[-1], side='right') - 1
        threshold = float(scores[order[max(last, 0)]])
        chosen = predictor.scores(samples.held_out) > threshold
        return Judged([threshold], Quality.of(truth, truth > 0, chosen))

    return judge
