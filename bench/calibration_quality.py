"""The price and the gain of a calibrated store, measured: rows of `quality.py --calibration`."""

from dataclasses import dataclass
from pathlib import Path
from statistics import median
import time

from fidelity import engine_logits, token_losses
import numpy as np

from flash_llm_ros.calibrate.measured_loss import LossMeter
from flash_llm_ros.engine import Engine, EngineConfig
from flash_llm_ros.engine.neuron_trace import record
from flash_llm_ros.engine.predictors import PredictorStack
from flash_llm_ros.store.flash_store import FlashStore

SPARSITIES = (0.5, 0.6, 0.7, 0.8)
WINDOWS = (0.25, 0.5, 0.75)     # of the feed-forward bytes
CONTEXT = 2048
_SPARE = 500_000_000


@dataclass(frozen=True)
class SparsePrice:
    """Of one setting, on the same tokens as every other: losses, and divergences from exact mode's
    answers; nats by token. And the share of the columns that was really left out."""

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


class PriceList:
    """Prices on one text. It is read in chunks, by the same thresholds as an answer is made."""

    def __init__(self, store: FlashStore, tokens: list[int]) -> None:
        self._engine, self._tokens = opened(store), np.array(tokens, np.int64)
        self._exact = LossMeter(self._engine, []).exact(self._tokens)

    @property
    def exact(self) -> np.ndarray:
        """Exact mode's losses, nats by token."""
        return self._exact.losses

    def price(self, thresholds: np.ndarray) -> SparsePrice:
        """Of an activation threshold for each layer."""
        meter = LossMeter(self._engine, [])
        found = meter.compared(self._tokens, self._exact, thresholds)
        return SparsePrice(found['losses'], found['divergences'], meter.left_out)

    def close(self) -> None:
        self._engine.close()


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
