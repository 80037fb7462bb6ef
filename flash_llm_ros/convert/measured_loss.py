"""What leaving out down columns costs, measured on the model itself: losses and divergences."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from flash_llm_ros.convert.block_stand_in import BlockStandIn
from flash_llm_ros.convert.ffn_weights import Array
from flash_llm_ros.engine import Engine
from flash_llm_ros.engine.model.feed_forward.dense import DenseFeedForward
from flash_llm_ros.engine.tail_correction import TailCorrection

Piece = NDArray[np.int64]       # token ids, no more than the engine's context


class ThresholdedFeedForward:
    """The dense feed-forward block of a split store, with small activations put to zero.

    Computes what sparse mode computes, for several tokens at once, and reads as exact mode does.
    """

    def __init__(self, dense: DenseFeedForward, engine: Engine) -> None:
        self._dense, self._window, self._spec = dense, engine.model.window, engine.model.spec
        self._exact = np.full(engine.model.spec.layers, -1.0)
        self.active_neurons = self.total_neurons = 0
        self.begin = dense.begin
        self.use(None)

    def use(self, thresholds: NDArray[np.float64] | None,
            corrections: Sequence[TailCorrection] | None = None) -> None:
        """One a layer; None: exact. And what is added in the place of what they leave out."""
        self._thresholds = self._exact if thresholds is None else thresholds
        self._corrections = corrections

    def run(self, layer: int, x: Array, out: Array, dense: bool) -> None:
        core, h = self._window.core, self._dense.activations[:len(x)]
        core.gate_up(self._window.section('gate_up', layer), x, h,
                     self._spec.feed_forward.activation)
        used = np.abs(h) > self._thresholds[layer]
        h *= used
        self.active_neurons += int(np.count_nonzero(used))
        self.total_neurons += used.size
        core.add_rows(self._window.section('down', layer), h, out)
        if self._corrections is not None:
            self._corrections[layer].add(x, out)


class EnteringLayers(BlockStandIn):
    """Stands before a feed-forward block and keeps what enters each layer but the first."""

    def __init__(self, inner: DenseFeedForward) -> None:
        super().__init__(inner)
        self.entering: dict[int, list[Array]] = {}      # by layer, chunk by chunk

    def run(self, layer: int, x: Array, out: Array, dense: bool) -> None:
        self._inner.run(layer, x, out, dense)
        self.entering.setdefault(layer + 1, []).append(out.copy())


@dataclass(frozen=True)
class ExactAnswers:
    """Exact mode's answers to a piece of text.

    `logs`: logarithms of probabilities, float32 [tokens, vocabulary], in chunks. `losses`: what
    every token but the first cost to guess, nats, float64 [tokens - 1].
    """

    logs: list[Array]
    losses: NDArray[np.float64]


class LossMeter:
    """Measures on pieces of text; the engine, of a split store in exact mode, is as it was then."""

    def __init__(self, engine: Engine, pieces: list[Piece]) -> None:
        self.pieces = pieces
        self._model = engine.model
        self._plain = engine.model.feed_forward
        self._sparse = ThresholdedFeedForward(self._plain, engine)
        vocabulary = engine.model.spec.embedding.vocab_size
        self._logits = np.empty((engine.model.chunk, vocabulary), np.float32)

    @property
    def tokens(self) -> int:
        return sum(map(len, self.pieces))

    @property
    def left_out(self) -> float:
        """Share of the down columns that all that was measured with thresholds left out."""
        return 1 - self._sparse.active_neurons / max(self._sparse.total_neurons, 1)

    def losses(self, thresholds: NDArray[np.float64] | None) -> NDArray[np.float64]:
        """Nats by token, float64 [tokens - pieces], with a threshold a layer; None: exact."""
        return np.concatenate([_losses(piece, self._rows(piece, thresholds))
                               for piece in self.pieces])

    def perplexity(self, thresholds: NDArray[np.float64] | None) -> float:
        """exp of the mean loss."""
        return float(np.exp(self.losses(thresholds).mean()))

    def exact(self, piece: Piece) -> ExactAnswers:
        """What the others are compared with; holds four bytes a token and word of vocabulary."""
        logs = [rows.copy() for rows in self._rows(piece, None)]
        return ExactAnswers(logs, _losses(piece, logs))

    def compared(self, piece: Piece, exact: ExactAnswers, thresholds: NDArray[np.float64],
                 corrections: Sequence[TailCorrection] | None = None, prompt: int = 0
                 ) -> dict[str, NDArray[np.float64]]:
        """In nats: `losses` [tokens - 1], and `divergences` from exact mode's answers [tokens].

        The first `prompt` tokens, or some fewer that are whole chunks, are read as in exact mode.
        """
        divergences: list[NDArray[np.float64]] = []

        def watched() -> Iterator[Array]:
            found = self._rows(piece, thresholds, corrections=corrections, prompt=prompt)
            for reference, rows in zip(exact.logs, found, strict=True):
                divergences.append(divergence(reference, rows))
                yield rows

        losses = _losses(piece, watched())
        return {'losses': losses, 'divergences': np.concatenate(divergences)}

    def sensitivities(self, piece: Piece, limits: NDArray[np.float64],
                      progress: Callable[[int], None]) -> NDArray[np.float64]:
        """Divergence in nats when one layer has its limit and the others none; [layers, tokens].

        What comes before that layer is as in exact mode, and is not computed again.
        """
        self._model.feed_forward = recorder = EnteringLayers(self._plain)
        try:
            exact = [rows.copy() for rows in self._rows(piece, None)]
        finally:
            self._model.feed_forward = self._plain
        found = np.empty((len(limits), len(piece)))
        for layer, limit in enumerate(limits):
            thresholds = np.full(len(limits), -1.0)
            thresholds[layer] = limit
            rows = self._rows(piece, thresholds, layer, recorder.entering.get(layer))
            found[layer] = np.concatenate([divergence(*pair)
                                           for pair in zip(exact, rows, strict=True)])
            progress(layer + 1)
        return found

    def _rows(self, piece: Piece, thresholds: NDArray[np.float64] | None, first: int = 0,
              entering: list[Array] | None = None,
              corrections: Sequence[TailCorrection] | None = None,
              prompt: int = 0) -> Iterator[Array]:
        """Logarithms of probabilities, chunk by chunk; the next chunk overwrites them."""
        model = self._model
        if thresholds is not None:
            self._sparse.use(thresholds, corrections)
        try:
            for index, position in enumerate(range(0, len(piece), model.chunk)):
                chunk = piece[position:position + model.chunk]
                if thresholds is not None and position + len(chunk) > prompt:
                    model.feed_forward = self._sparse
                logits = self._logits[:len(chunk)]
                if first:
                    model.attention.hidden(first, len(chunk))[:] = entering[index]
                    model.run_layers(first, len(chunk), position, True, logits)
                else:
                    model.forward(chunk, position, dense=True, logits=logits)
                yield log_softmax(logits)
        finally:
            if thresholds is not None:
                model.feed_forward = self._plain


def divergence(reference: Array, ours: Array) -> NDArray[np.float64]:
    """KL divergence in nats, by token, of log probabilities [tokens, vocabulary]."""
    return (np.exp(reference) * (reference - ours)).sum(axis=1, dtype=np.float64)


def _losses(piece: Piece, chunks: Iterable[Array]) -> NDArray[np.float64]:
    """Of every token but the first, what it cost to guess it."""
    found, start = [], 1
    for rows in chunks:
        following = piece[start:start + len(rows)]
        found.append(-rows[np.arange(len(following)), following])
        start += len(rows)
    return np.concatenate(found).astype(np.float64)


def log_softmax(logits: Array) -> Array:
    """In place."""
    logits -= logits.max(axis=1, keepdims=True)
    logits -= np.log(np.exp(logits).sum(axis=1, keepdims=True))
    return logits
