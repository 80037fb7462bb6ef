"""What leaving out down columns costs, measured on the model itself: perplexity, divergence."""

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from flash_llm_ros.calibrate.ffn_weights import Array
from flash_llm_ros.engine import Engine
from flash_llm_ros.engine.feed_forward import DenseFeedForward

_DIVERGENCE_ROWS = 16           # of a chunk: its last tokens


class ThresholdedFeedForward:
    """The dense feed-forward block of a split store, with small activations put to zero.

    Computes what sparse mode computes, for several tokens at once, and reads as exact mode does.
    """

    def __init__(self, dense: DenseFeedForward, engine: Engine) -> None:
        self._dense, self._window, self._spec = dense, engine.model.window, engine.model.spec
        self.thresholds = np.full(engine.model.spec.layers, -1.0)
        self.begin = dense.begin

    @property
    def active_neurons(self) -> int:
        return self._dense.active_neurons

    @property
    def total_neurons(self) -> int:
        return self._dense.total_neurons

    def run(self, layer: int, x: Array, out: Array, dense: bool) -> None:
        core, h = self._window.core, self._dense.activations[:len(x)]
        core.gate_up(self._window.section('gate_up', layer), x, h, self._spec.activation)
        h *= np.abs(h) > self.thresholds[layer]
        core.add_rows(self._window.section('down', layer), h, out)


class LossMeter:
    """Measures on pieces of text, lists of token ids no longer than the engine's context."""

    def __init__(self, engine: Engine, pieces: list[NDArray[np.int64]]) -> None:
        self._model, self._pieces = engine.model, pieces
        self._plain = engine.model.feed_forward
        self._sparse = ThresholdedFeedForward(self._plain, engine)
        self._logits = np.empty((engine.model.chunk, engine.model.spec.vocab_size), np.float32)

    @property
    def tokens(self) -> int:
        return sum(map(len, self._pieces))

    def losses(self, thresholds: NDArray[np.float64] | None) -> NDArray[np.float64]:
        """Nats by token, float64 [tokens - pieces], with a threshold a layer; None: exact."""
        found = []
        for piece in self._pieces:
            for start, logits in self._chunks(piece, thresholds, self._model.chunk):
                following = piece[start + 1:start + 1 + len(logits)]
                rows = log_softmax(logits[:len(following)])
                found.append(-rows[np.arange(len(rows)), following])
        return np.concatenate(found).astype(np.float64)

    def perplexity(self, thresholds: NDArray[np.float64] | None) -> float:
        """exp of the mean loss."""
        return float(np.exp(self.losses(thresholds).mean()))

    def sensitivities(self, limits: NDArray[np.float64],
                      progress: Callable[[int, int], None]) -> NDArray[np.float64]:
        """Mean divergence in nats when one layer has its limit and the others none; [layers]."""
        layers = len(limits)
        reference = list(self._rows(None))
        found = np.empty(layers)
        for layer in range(layers):
            thresholds = np.full(layers, -1.0)
            thresholds[layer] = limits[layer]
            pairs = zip(reference, self._rows(thresholds), strict=True)
            found[layer] = np.mean([divergence(exact, rows) for exact, rows in pairs])
            progress(layer + 1, layers)
        return np.maximum(found, 0)

    def _rows(self, thresholds: NDArray[np.float64] | None) -> Iterator[Array]:
        for piece in self._pieces:
            for _, logits in self._chunks(piece, thresholds, _DIVERGENCE_ROWS):
                yield log_softmax(logits).astype(np.float32)

    def _chunks(self, piece: NDArray[np.int64], thresholds: NDArray[np.float64] | None,
                rows: int) -> Iterator[tuple[int, Array]]:
        """Chunk by chunk: the position of the first of at most `rows` logits, and the logits."""
        model = self._model
        if thresholds is not None:
            self._sparse.thresholds = thresholds
            model.feed_forward = self._sparse
        try:
            for position in range(0, len(piece), model.chunk):
                chunk = piece[position:position + model.chunk]
                logits = self._logits[:min(rows, len(chunk))]
                model.forward(chunk, position, dense=True, logits=logits)
                yield position + len(chunk) - len(logits), logits
        finally:
            model.feed_forward = self._plain


def divergence(reference: Array, ours: Array) -> float:
    """Mean KL divergence in nats of log probabilities [tokens, vocabulary]."""
    return float((np.exp(reference) * (reference - ours)).sum(axis=1, dtype=np.float64).mean())


def log_softmax(logits: Array) -> Array:
    shifted = logits - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
