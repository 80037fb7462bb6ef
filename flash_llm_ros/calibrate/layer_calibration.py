"""Calibrates one layer: thresholds, its predictor, and what the predictor is worth."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from flash_llm_ros.calibrate.low_rank import low_rank_factors
from flash_llm_ros.checkpoint.checkpoint import Checkpoint
from flash_llm_ros.store.block_quantisation import dequantise, quantise
from flash_llm_ros.store.predictor_graph import RESIDENT

SPARSITIES = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
# Share of a ReLU layer's contribution that its predictor may leave out on calibration text.
RELU_LOSS = 0.005
_HELD_OUT = 4                   # every fourth token is kept for measuring

Array = NDArray[np.float32]


@dataclass(frozen=True)
class LayerCalibration:
    """Thresholds by sparsity, the predictor's factors, and its quality on held-out tokens."""

    thresholds: dict[str, float]
    predictor_thresholds: dict[str, float]
    inner: Array
    outer: Array
    down_norm: Array
    recall: float               # share of the active contribution that was predicted
    precision: float            # share of the predicted neurons that were active
    sparsity: float             # share of neurons left out at the default threshold


class FfnWeights:
    """A layer's feed-forward matrices and what they make of inputs."""

    def __init__(self, checkpoint: Checkpoint, layer: int) -> None:
        self.gate, self.up, down = (checkpoint.rows(f'layers.{layer}.{part}')
                                    for part in ('gate', 'up', 'down'))
        self.down_norm = np.linalg.norm(down, axis=0).astype(np.float32)
        self.activation = checkpoint.spec.activation

    def contributions(self, x: Array) -> Array:
        """abs(activation) times the norm of the down column, float32 [tokens, ffn]."""
        return score(x @ self.gate.T, x @ self.up.T * self.down_norm, self.activation)


def score(gate: Array, scaled_up: Array, activation: str) -> Array:
    if activation == 'relu':
        return np.abs(np.maximum(gate, 0) * scaled_up)
    return np.abs(gate / (1 + np.exp(-np.clip(gate, -60, 60))) * scaled_up)


def calibrate_split(weights: FfnWeights, x: Array, rank: int,
                    default_sparsity: float) -> LayerCalibration:
    """Gated-SiLU layers: contribution thresholds, and a predictor that prefetches."""
    train, held = _train_and_held_out(x)
    exact = weights.contributions(train)
    thresholds = _quantiles(exact)
    joined = np.concatenate([weights.gate, weights.up * weights.down_norm[:, None]])
    outer, inner = low_rank_factors(joined, train, rank)

    def predicted(tokens: Array) -> Array:
        gate, up = np.split(_through(tokens, inner, outer), 2, axis=1)
        return score(gate, up, weights.activation)

    scores = predicted(train)
    wanted = _quantiles(scores)
    truth, key = weights.contributions(held), f'{default_sparsity:.2f}'
    active, chosen = truth > thresholds[key], predicted(held) > wanted[key]
    return LayerCalibration(thresholds, wanted, inner, outer, weights.down_norm,
                            *_quality(truth * active, active, chosen), default_sparsity)


def calibrate_bundled(weights: FfnWeights, x: Array, rank: int) -> LayerCalibration:
    """ReLU layers: a predictor of the gate's sign that decides, so its misses are bounded."""
    train, held = _train_and_held_out(x)
    outer, inner = low_rank_factors(weights.gate, train, rank)
    scores = _through(train, inner, outer).ravel()
    order = np.argsort(scores)
    lost = np.cumsum(weights.contributions(train).ravel()[order], dtype=np.float64)
    last = np.searchsorted(lost, RELU_LOSS * lost[-1], side='right') - 1
    threshold = float(scores[order[max(last, 0)]])
    truth = weights.contributions(held)
    chosen = _through(held, inner, outer) > threshold
    return LayerCalibration({}, {'0.00': threshold}, inner, outer, weights.down_norm,
                            *_quality(truth, truth > 0, chosen), 1 - float(chosen.mean()))


def _quantiles(scores: Array) -> dict[str, float]:
    values = np.quantile(scores, SPARSITIES)
    return {f'{s:.2f}': float(v) for s, v in zip(SPARSITIES, values, strict=True)}


def _train_and_held_out(x: Array) -> tuple[Array, Array]:
    held = np.arange(len(x)) % _HELD_OUT == _HELD_OUT - 1
    return x[~held], x[held]


def _through(x: Array, inner: Array, outer: Array) -> Array:
    """x through both factors as they will be stored."""
    for factor in (inner, outer):
        x = x @ dequantise(quantise(factor, RESIDENT), factor.shape[1]).T
    return x


def _quality(weight: Array, active: NDArray[np.bool_],
             chosen: NDArray[np.bool_]) -> tuple[float, float]:
    total, hits = float(weight.sum()), float((weight * chosen).sum())
    recall = hits / total if total else 1.0
    return recall, float((active & chosen).sum() / max(chosen.sum(), 1))
