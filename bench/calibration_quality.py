"""The price and the gain of a calibrated store, measured: rows of `quality.py --calibration`."""

from dataclasses import dataclass
from pathlib import Path
from statistics import median
import time

from fidelity import engine_logits, token_losses
import numpy as np

from flash_llm_ros.convert.measured_loss import LossMeter
from flash_llm_ros.engine import Engine, EngineConfig
from flash_llm_ros.engine.model.predictors import PredictorStack
from flash_llm_ros.engine.neuron_trace import record
from flash_llm_ros.engine.tail_correction import TailCorrection
from flash_llm_ros.store.flash_store import FlashStore
from flash_llm_ros.store.writer import Progress

SPARSITIES = (0.5, 0.6, 0.7, 0.8)
WINDOWS = (0.25, 0.5, 0.75)     # of the feed-forward bytes
CONTEXT = 2048
PIECE = 1024                    # of a text, what is read in one context
_SPARE = 500_000_000


@dataclass(frozen=True)
class SparsePrice:
    """Of one setting: exact mode's losses, its own on the same tokens, and its divergences from
    exact mode's answers; nats by token. And the share of the columns that was really left out."""

    exact: np.ndarray
    losses: np.ndarray
    divergences: np.ndarray
    left_out: float


@dataclass(frozen=True)
class Traffic:
    """Feed-forward bytes read per token, as a share of all, at one window; and the time."""

    regime: str
    window: float               # share of the feed-forward bytes that fit
    read: float
    milliseconds: float         # a token's median


def ffn_bytes(store: FlashStore) -> int:
    geometry = store.manifest.geometry
    return geometry.group_bytes * sum(section.groups for section in geometry.sections
                                      if section.layer >= 0)


def head_bytes(store: FlashStore) -> int:
    geometry = store.manifest.geometry
    name = 'embedding' if store.manifest.model.tied_embeddings else 'head'
    return geometry.group_bytes * geometry.section(name).groups


def opened(store: FlashStore, budget: int | None = None, **options: object) -> Engine:
    budget = 2 * store.bytes + _SPARE if budget is None else budget
    return Engine.open(EngineConfig(store.path, budget, context_length=CONTEXT, threads=2,
                                    lock_memory=False, **options))


def exact_losses(store: FlashStore, tokens: list[int]) -> np.ndarray:
    engine = opened(store)
    try:
        return token_losses(engine_logits(engine, tokens), tokens)
    finally:
        engine.close()


@dataclass(frozen=True)
class SparseSetting:
    """An activation threshold for each layer, float64 [layers], and learned corrections.

    The first `prompt` tokens of a piece are read exactly, as prompts are, and not counted.
    """

    thresholds: np.ndarray
    corrections: list[TailCorrection] | None = None
    prompt: int = 0


def prices(store: FlashStore, tokens: list[int], settings: dict[str, SparseSetting],
           progress: Progress) -> tuple[np.ndarray, dict[str, SparsePrice]]:
    """Exact mode's losses, nats by token, and what each setting costs, on a text in pieces.

    A piece is read in chunks, by the same thresholds as an answer is made.
    """
    engine = opened(store)
    try:
        meters = {name: LossMeter(engine, []) for name in settings}
        losses, found, steps = [], {name: [] for name in settings}, 0
        starts = range(0, len(tokens), PIECE)
        for start in starts:
            piece = np.array(tokens[start:start + PIECE], np.int64)
            exact = LossMeter(engine, []).exact(piece)
            losses.append(exact.losses)
            for name, setting in settings.items():
                price = meters[name].compared(piece, exact, setting.thresholds,
                                              setting.corrections, setting.prompt)
                found[name].append({what: values[setting.prompt:] for what, values in
                                    {'exact': exact.losses, **price}.items()})
                steps += 1
                progress('measuring prices', steps, len(starts) * len(settings))
        return np.concatenate(losses), {name: SparsePrice(
            *(np.concatenate([part[what] for part in parts])
              for what in ('exact', 'losses', 'divergences')), meters[name].left_out)
            for name, parts in found.items()}
    finally:
        engine.close()


def prefetch_recall(store: FlashStore, text: str, tokens: int) -> tuple[float, float]:
    """Of the down columns used, those that were predicted; and of these, those used."""
    engine = opened(store, mode='sparse', down_reads='scattered')
    try:
        trace = record(engine, text, tokens, lambda done, total: None)
    finally:
        engine.close()
    used = predicted = both = 0
    wanted: dict[int, np.ndarray] = {}
    for event in trace:
        if event.predicted:
            wanted[event.section] = event.neurons
        else:
            guess = wanted.pop(event.section)
            used += int(event.neurons.sum())
            predicted += int(guess.sum())
            both += int((event.neurons & guess).sum())
    return both / max(used, 1), both / max(predicted, 1)


def traffic(store: FlashStore, tokens: list[int], regime: str, mode: str, window: float,
            **options: object) -> Traffic:
    """With room for the output head and this share of the feed-forward bytes."""
    engine = opened(store, mode=mode, **options)
    fixed = engine.plan.planned - engine.plan.window_bytes
    engine.close()
    budget = fixed + head_bytes(store) + int(window * ffn_bytes(store))
    engine = opened(store, budget, mode=mode, **options)
    logits = np.empty((1, engine.model.spec.vocab_size), np.float32)
    warm, begin, seconds = len(tokens) // 4, {}, []
    try:
        for position, token in enumerate(tokens):
            if position == warm:
                begin = engine.stats()
            started = time.perf_counter()
            engine.model.forward(np.array([token]), position, mode == 'exact', logits)
            seconds.append(time.perf_counter() - started)
        read = engine.stats()['flash_bytes'] - begin['flash_bytes']
    finally:
        engine.close()
    return Traffic(regime, window, read / (len(tokens) - warm) / ffn_bytes(store),
                   1e3 * median(seconds[warm:]))


def model_store(model: Path, neurons: str) -> Path:
    """Where the store of a model in this format is kept between runs, calibrated by the bench."""
    return model.parent / f'{model.stem}.{neurons}.calibrated.store'


class PredictorDecides:
    """Whole neurons are left out by their predicted score, before gate and up are computed."""

    def __init__(self, engine: Engine, store: FlashStore, load: float) -> None:
        self._dense, self._window = engine.model.feed_forward, engine.model.window
        self._predictors = PredictorStack(store, 1, 0.0, scores=True)
        self._activation = engine.model.spec.activation
        self._left_out = round((1 - load) * engine.model.spec.ffn_size)
        self.begin = self._dense.begin

    def run(self, layer: int, x: np.ndarray, out: np.ndarray, dense: bool) -> None:
        core, h = self._window.core, self._dense.activations[:len(x)]
        core.gate_up(self._window.section('gate_up', layer), x, h, self._activation)
        for row, activations in zip(x, h, strict=True):
            self._predictors.wanted(layer, row)
            least = np.argpartition(self._predictors.scores, self._left_out)[:self._left_out]
            activations[least] = 0
        core.add_rows(self._window.section('down', layer), h, out)


def predicted_losses(store: FlashStore, tokens: list[int], load: float) -> np.ndarray:
    """Where the predictor alone says which share of the neurons, gate and up too, is loaded."""
    engine = opened(store)
    try:
        engine.model.feed_forward = PredictorDecides(engine, store, load)
        return token_losses(engine_logits(engine, tokens), tokens)
    finally:
        engine.close()
