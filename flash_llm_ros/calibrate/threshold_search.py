"""Finds a split store's activation thresholds, and the sparsity that costs little enough."""

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cache
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from flash_llm_ros.calibrate.likely_means import likely_means
from flash_llm_ros.calibrate.thresholds import (
    SHARES,
    SPARSITIES,
    output_errors,
    share_out,
    size_quantiles,
    threshold,
)
from flash_llm_ros.convert.ffn_weights import FfnWeights
from flash_llm_ros.convert.measured_loss import LossMeter
from flash_llm_ros.convert.perplexity_growth import Growth
from flash_llm_ros.convert.resumable_folder import ResumableFolder
from flash_llm_ros.convert.samples import Samples
from flash_llm_ros.engine import Engine
from flash_llm_ros.store.flash_store import FlashStore
from flash_llm_ros.store.manifest import Calibration
from flash_llm_ros.store.neuron_reader import NeuronReader
from flash_llm_ros.store.tensor_file import TensorFile
from flash_llm_ros.store.writer import Progress

DEFAULT_SPARSITY = 0.5          # where no loss was measured
_PROBED = 0.7                   # share at which a layer's sensitivity is measured
_QUANTILE_VALUES = 2_000_000    # activations that a layer's quantiles are taken of
_ERROR_TOKENS = 192


@dataclass(frozen=True)
class FoundThresholds:
    """By sparsity of the whole model: a threshold and a share left out for each layer.

    `perplexity` is of held-out text, '0.00' is exact; `growth` is relative to that, and
    `uniform_growth` with the same share left out of every layer, by `uniform_thresholds`. Empty
    where nothing was measured.
    """

    thresholds: dict[str, list[float]]
    shares: dict[str, list[float]]
    default_sparsity: float
    perplexity: dict[str, float]
    growth: dict[str, Growth]
    uniform_growth: dict[str, Growth]
    uniform_thresholds: dict[str, list[float]]

    def at_default(self, layer: int) -> tuple[float, float]:
        """A layer's activation threshold, and the share left out, at the default sparsity."""
        return tuple(float(at_sparsity(table, self.default_sparsity)[layer])
                     for table in (self.thresholds, self.shares))


class EngineOpener(Protocol):
    """Opens the store in exact mode; the engine is closed again on leaving."""

    def __call__(self) -> AbstractContextManager[Engine]: ...


class ThresholdSearch:
    """`measured` tokens of text are read several times; 0: every layer leaves out the same."""

    def __init__(self, store: FlashStore, samples: Samples, work: ResumableFolder,
                 progress: Progress) -> None:
        self._store, self._samples, self._work = store, samples, work
        self._progress = progress
        self._layers = store.manifest.model.layers

    def find(self, open_engine: EngineOpener, measured: int, most_loss: float) -> FoundThresholds:
        curves = list(self._curves(bool(measured)))
        quantiles = [curve['quantiles'] for curve in curves]
        shares = uniform = {f'{s:.2f}': np.full(self._layers, s) for s in SPARSITIES}
        uniform_limits = {key: _limits(quantiles, found) for key, found in uniform.items()}
        perplexity, growth, uniform_growth = {}, {}, {}
        if measured:
            with open_engine() as engine:
                losses = self._losses(engine, curves, measured)
                shares = {key: share_out(losses, float(key)) for key in uniform}
                exact, (alike, own) = self._compared(
                    LossMeter(engine, self._samples.held_out_pieces(measured)),
                    uniform_limits.values(),
                    [_limits(quantiles, found) for found in shares.values()])
            # Divergences say much surer than losses which of two is closer to exact mode.
            chosen = [min(pair, key=lambda one: one['divergences'].mean())
                      for pair in zip(own, alike, strict=True)]
            shares = {key: uniform[key] if one is other else shares[key]
                      for key, one, other in zip(shares, chosen, alike, strict=True)}
            growth, uniform_growth = (
                {key: Growth.of(one['losses'], exact)
                 for key, one in zip(uniform, found, strict=True)} for found in (chosen, alike))
            perplexity = {key: float(np.exp(exact.mean() + one.nats))
                          for key, one in {'0.00': Growth(0, 0), **growth}.items()}
        return FoundThresholds(
            {key: _limits(quantiles, found).tolist() for key, found in shares.items()},
            {key: np.round(found, 4).tolist() for key, found in shares.items()},
            affordable_sparsity(growth, most_loss) if measured else DEFAULT_SPARSITY,
            perplexity, growth, uniform_growth,
            {key: limits.tolist() for key, limits in uniform_limits.items()})

    def _curves(self, errors: bool) -> Iterator[dict[str, NDArray]]:
        """Of every layer: quantiles of the activations, and errors of the output."""
        with NeuronReader(self._store) as reader:
            for layer in range(self._layers):
                yield self._work.arrays(f'curve-{layer:03d}', lambda layer=layer: self._curve(
                    FfnWeights(reader, self._store.manifest, layer), layer, errors))
                self._progress('thresholds', layer + 1, self._layers)

    def _curve(self, weights: FfnWeights, layer: int, errors: bool) -> dict[str, NDArray]:
        x = self._samples.train(layer, max(1, _QUANTILE_VALUES // len(weights.down_norm)))
        quantiles = size_quantiles(weights.activations(x))
        if not errors:
            return {'quantiles': quantiles}
        some = self._samples.train(layer, _ERROR_TOKENS)
        return {'quantiles': quantiles, 'errors': output_errors(weights, some, quantiles)}

    def _losses(self, engine: Engine, curves: list[dict[str, NDArray]],
                measured: int) -> NDArray[np.float64]:
        """Estimated divergence in nats by layer and share, [layers, shares].

        The squared error of a layer's output, times what it was measured to cost at one share.
        """
        errors = np.array([curve['errors'] for curve in curves])
        limits = _limits([curve['quantiles'] for curve in curves], np.full(self._layers, _PROBED))
        meter = LossMeter(engine, self._samples.train_pieces(measured))
        steps, found = len(meter.pieces) * self._layers, []
        for number, piece in enumerate(meter.pieces):
            def say(done: int, before: int = number * self._layers) -> None:
                self._progress('sensitivities', before + done, steps)
            found.append(self._work.arrays(f'sensitivities-{number:02d}', lambda piece=piece: {
                'nats': meter.sensitivities(piece, limits, say)})['nats'])
        probed = errors[:, np.flatnonzero(SHARES == _PROBED)[0]]
        sensitivities = likely_means(np.concatenate(found, axis=1))
        return errors * (sensitivities / np.maximum(probed, np.finfo(float).tiny))[:, None]

    def _compared(self, meter: LossMeter, *tables: Iterable[NDArray[np.float64]]
                  ) -> tuple[NDArray[np.float64], list[list[dict[str, NDArray]]]]:
        """Exact mode's losses, and for each setting of each table `LossMeter.compared`."""
        tables = [list(table) for table in tables]
        settings = [limits for table in tables for limits in table]
        losses, found = [], [[] for _ in settings]
        for number, piece in enumerate(meter.pieces):
            exact = cache(lambda piece=piece: meter.exact(piece))
            losses.append(self._work.arrays(
                f'exact-{number:02d}', lambda exact=exact: {'losses': exact().losses})['losses'])
            for index, limits in enumerate(settings):
                found[index].append(self._work.arrays(
                    f'compared-{number:02d}-{index:02d}',
                    lambda piece=piece, exact=exact, limits=limits: meter.compared(
                        piece, exact(), limits)))
                self._progress('perplexity', number * len(settings) + index + 1,
                               len(meter.pieces) * len(settings))
        whole = iter([{name: np.concatenate([one[name] for one in parts]) for name in parts[0]}
                      for parts in found])
        return np.concatenate(losses), [[next(whole) for _ in table] for table in tables]


def affordable_sparsity(growth: dict[str, Growth], most_loss: float) -> float:
    """The largest sparsity up to which perplexity surely grows by at most `most_loss`.

    In whole per cent. Between measured sparsities the bound's logarithm is interpolated.
    """
    points = sorted(growth, key=float)
    grid = [0.0, *map(float, points)]
    bounds = [0.0, *(growth[point].most_nats for point in points)]
    tried = np.arange(1 + round(100 * grid[-1])) / 100
    within = np.interp(tried, grid, bounds) <= np.log1p(most_loss)
    return float(tried[-1] if within.all() else tried[within.argmin() - 1])


def _limits(quantiles: list[NDArray], shares: NDArray) -> NDArray[np.float64]:
    return np.array([threshold(found, share)
                     for found, share in zip(quantiles, shares, strict=True)])


def down_norms(store: FlashStore) -> list[NDArray[np.float32]]:
    """Norms of the down columns, float32 [ffn] a layer; of a split store that is calibrated."""
    with TensorFile(store.path / store.predictor_weights) as tensors:
        norms = [tensors.read(f'predictors.{layer}.down_norm')
                 for layer in range(store.manifest.model.layers)]
        tensors.drop_page_cache()
    return norms


def activation_limits(calibration: Calibration, sparsity: float,
                      norms: list[NDArray[np.float32]]) -> list[NDArray[np.float32]]:
    """What abs(h) must exceed for a down column to be used, float32 [ffn] a layer."""
    with np.errstate(divide='ignore', invalid='ignore'):
        return [(threshold / norm ** calibration.norm_exponent).astype(np.float32)
                for threshold, norm in zip(at_sparsity(calibration.thresholds, sparsity), norms,
                                           strict=True)]


def at_sparsity(table: dict[str, list[float]], sparsity: float) -> NDArray[np.float64]:
    """One threshold a layer, between the calibrated sparsities interpolated linearly.

    Where the table does not say otherwise, sparsity 0 is threshold 0: only zeros are left out.
    """
    table = {'0.00': [0.0] * len(next(iter(table.values()))), **table}
    points = sorted(table, key=float)
    columns = np.array([table[point] for point in points])
    grid = [float(point) for point in points]
    return np.array([np.interp(sparsity, grid, column) for column in columns.T])
