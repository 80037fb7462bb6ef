"""Makes candidates for every layer's predictor, measures them, and chooses within a budget."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from flash_llm_ros.calibrate.threshold_search import FoundThresholds
from flash_llm_ros.calibrate.trained_predictor import train
from flash_llm_ros.convert.ffn_weights import Array, FfnWeights
from flash_llm_ros.convert.low_rank import InputStatistics, LowRankFactors
from flash_llm_ros.convert.predictor import Predictor, predicted_rows
from flash_llm_ros.convert.predictor_choice import Candidate, choose
from flash_llm_ros.convert.predictor_quality import (
    LayerSamples,
    Quality,
    judge_bundled,
    judge_split,
)
from flash_llm_ros.convert.resumable_folder import ResumableFolder
from flash_llm_ros.convert.samples import Samples
from flash_llm_ros.store.flash_store import FlashStore
from flash_llm_ros.store.manifest import PredictorFacts
from flash_llm_ros.store.neuron_reader import NeuronReader
from flash_llm_ros.store.predictor_graph import PredictorForm
from flash_llm_ros.store.writer import Progress

_MEASURED_SCORES = 4_000_000    # scores that a threshold or a quality is taken of
_TRAINING_SCORES = 16_000_000   # of the tokens that a trained predictor sees
_STATISTICS_TOKENS = 4096       # inputs at once


@dataclass(frozen=True)
class FoundPredictor:
    """The one that a layer gets: thresholds by sparsity, and what it is worth."""

    form: PredictorForm
    thresholds: dict[str, float]
    facts: PredictorFacts
    loaded: float               # share of neurons that it predicts at the default sparsity


class PredictorSearch:
    """Tries each of `forms` in each layer; what is best for `budget` bytes in all is chosen."""

    def __init__(self, store: FlashStore, samples: Samples, work: ResumableFolder,
                 forms: tuple[PredictorForm, ...], progress: Progress) -> None:
        self._store, self._samples, self._work = store, samples, work
        self._forms, self._progress = forms, progress
        self._kept_as = ''
        self._spec, self._layout = store.manifest.model, store.manifest.layout

    def find(self, thresholds: FoundThresholds | None, budget: int) -> list[FoundPredictor]:
        """One a layer; `thresholds` only in the split layout."""
        layers = []
        default = 0.0 if thresholds is None else thresholds.default_sparsity
        self._kept_as = f'tried-{default:.2f}-{{:03d}}'
        with NeuronReader(self._store) as reader:
            for layer in range(self._spec.layers):
                layers.append(self._work.arrays(
                    self._kept_as.format(layer),
                    lambda layer=layer: self._tried(reader, layer, thresholds)))
                self._progress('calibrating', layer + 1, self._spec.layers)
        chosen = choose([[Candidate(int(size), float(value)) for size, value
                          in zip(tried['bytes'], tried['value'], strict=True)]
                         for tried in layers], budget)
        keys = ['0.00'] if thresholds is None else list(thresholds.shares)
        return [self._found(tried, index, keys)
                for tried, index in zip(layers, chosen, strict=True)]

    def predictors(self, forms: list[PredictorForm]) -> Iterator[tuple[Predictor, Array]]:
        """Again what was chosen, a form a layer, and the norms of the down columns."""
        with NeuronReader(self._store) as reader:
            for layer, form in enumerate(forms):
                weights = FfnWeights(reader, self._store.manifest, layer)
                tried = self._work.arrays(self._kept_as.format(layer), dict)
                yield self._predictor(form, weights, tried), weights.down_norm

    def _tried(self, reader: NeuronReader, layer: int,
               thresholds: FoundThresholds | None) -> dict[str, NDArray]:
        weights = FfnWeights(reader, self._store.manifest, layer)
        most = max(1, _MEASURED_SCORES // len(weights.down_norm))
        if thresholds is None:      # which decide: not from what the factors are fitted on
            judge = judge_bundled(weights, LayerSamples(
                *self._samples.held_out_halves(layer, most)))
        else:
            judge = judge_split(weights, LayerSamples(
                self._samples.train(layer, most), self._samples.held_out(layer, most)),
                thresholds, layer)
        found = {'mean': self._samples.train(layer, len(self._samples.tokens)).mean(axis=0),
                 **self._matrices(weights, layer, thresholds)}
        predictors = [self._predictor(form, weights, found) for form in self._forms]
        judged = [judge(predictor) for predictor in predictors]
        return {**found,
                'bytes': np.array([predictor.bytes for predictor in predictors]),
                'value': np.array([one.quality.recall if self._layout == 'split'
                                   else 1 - one.quality.loaded for one in judged]),
                'quality': np.array([[*vars(one.quality).values()] for one in judged]),
                'thresholds': np.array([one.thresholds for one in judged])}

    def _matrices(self, weights: FfnWeights, layer: int,
                  thresholds: FoundThresholds | None) -> dict[str, NDArray]:
        """The training-free factors of the largest rank, whose first columns are those of smaller
        ones, and the trained factors of each rank."""
        ranks = {kind: [form.size for form in self._forms if form.kind == kind]
                 for kind in ('low_rank', 'trained')}
        if not (ranks['low_rank'] or ranks['trained']):
            return {}
        factors = LowRankFactors(predicted_rows(weights, self._layout), self._root(layer))
        found = {}
        if ranks['low_rank']:
            found['low_rank.outer'], found['low_rank.inner'] = factors.of_rank(
                max(ranks['low_rank']))
        for rank in ranks['trained']:
            outer, inner = factors.of_rank(rank)
            x = self._samples.train(layer, max(1, _TRAINING_SCORES // len(weights.down_norm)))
            limit = 0.0 if thresholds is None else thresholds.at_default(layer)[0]
            found[f'trained.{rank}.outer'], found[f'trained.{rank}.inner'] = train(
                inner, outer, x, np.abs(weights.activations(x)), limit, self._layout, self._spec,
                weights.bias)
        return found

    def _root(self, layer: int) -> NDArray[np.float64]:
        statistics = InputStatistics(self._spec.hidden_size)
        x = self._samples.train(layer, len(self._samples.tokens))
        for start in range(0, len(x), _STATISTICS_TOKENS):
            statistics.add(x[start:start + _STATISTICS_TOKENS])
        return statistics.root()

    def _predictor(self, form: PredictorForm, weights: FfnWeights,
                   found: dict[str, NDArray]) -> Predictor:
        if form.kind == 'sketch':
            matrices = {'sketch': predicted_rows(weights, self._layout)}
        elif form.kind == 'trained':
            matrices = {part: found[f'trained.{form.size}.{part}'] for part in ('inner', 'outer')}
        else:
            matrices = {'inner': np.ascontiguousarray(found['low_rank.inner'][:form.size]),
                        'outer': np.ascontiguousarray(found['low_rank.outer'][:, :form.size])}
        predictor = Predictor(form, matrices, self._layout, self._spec, weights.bias)
        if self._layout == 'bundled' and form.kind != 'trained':    # whose scores are no gates
            predictor.centre(found['mean'], weights.gates(found['mean']))
        return predictor

    def _found(self, tried: dict[str, NDArray], index: int, keys: list[str]) -> FoundPredictor:
        form, quality = self._forms[index], Quality(*map(float, tried['quality'][index]))
        thresholds = dict(zip(keys, tried['thresholds'][index].tolist(), strict=True))
        facts = PredictorFacts(form.kind, form.size, int(tried['bytes'][index]),
                               round(quality.recall, 4), round(quality.precision, 4),
                               round(quality.kept, 4))
        return FoundPredictor(form, thresholds, facts, quality.loaded)
