"""Makes candidates for every layer's predictor, measures them, and chooses within a budget."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
import math

import numpy as np

from flash_llm_ros.convert.ffn_weights import Array, FfnWeights
from flash_llm_ros.convert.input_statistics import InputStatistics
from flash_llm_ros.convert.low_rank import LowRankFactors
from flash_llm_ros.convert.predictor import Predictor
from flash_llm_ros.convert.predictor_choice import Candidate, choose
from flash_llm_ros.convert.predictor_quality import Judge, Quality
from flash_llm_ros.convert.samples import Samples
from flash_llm_ros.model_spec import ModelSpec
from flash_llm_ros.onnx_runtime import TWO_BITS
from flash_llm_ros.store.flash_store import FlashStore
from flash_llm_ros.store.manifest import PredictorFacts
from flash_llm_ros.store.neuron_reader import NeuronReader
from flash_llm_ros.store.predictor_form import PredictorForm, predictor_layout
from flash_llm_ros.store.writer import Progress

FORMS = (*(PredictorForm('low_rank', rank) for rank in (64, 128, 256)),
         *(PredictorForm('sketch', bits) for bits in (2, 4) if bits > 2 or TWO_BITS))
_MEASURED_SCORES = 4_000_000    # scores that a threshold or a quality is taken of
_STATISTICS_TOKENS = 4096       # inputs at once


@dataclass(frozen=True)
class FoundPredictor:
    """The one that a layer gets, and what it is worth."""

    form: PredictorForm
    bytes: int
    quality: Quality

    @property
    def facts(self) -> PredictorFacts:
        return PredictorFacts(self.form.kind, self.form.size, self.bytes,
                              round(self.quality.recall, 4), round(self.quality.precision, 4),
                              round(self.quality.zeros, 4))


class LayerCandidates:
    """One layer's predictors of every form, made as they are asked for."""

    def __init__(self, weights: FfnWeights, samples: Samples, layer: int) -> None:
        self._weights, self._samples, self._layer = weights, samples, layer
        self._inputs = samples.train(layer, len(samples.tokens))
        self._mean = self._inputs.mean(axis=0)

    def predictor(self, form: PredictorForm) -> Predictor:
        return Predictor(form, self._matrices(form), self._mean, self._weights.gates(self._mean))

    def judge(self) -> Judge:
        most = max(1, _MEASURED_SCORES // len(self._weights.down_norm))
        return Judge(self._weights, *self._samples.held_out_halves(self._layer, most))

    def _matrices(self, form: PredictorForm) -> dict[str, Array]:
        if form.kind == 'sketch':
            return {'sketch': np.ascontiguousarray(self._weights.gate)}
        outer, inner = self._factors.of_rank(form.size)
        return {'inner': inner, 'outer': outer}

    @cached_property
    def _factors(self) -> LowRankFactors:
        statistics = InputStatistics(self._inputs.shape[1])
        for start in range(0, len(self._inputs), _STATISTICS_TOKENS):
            statistics.add(self._inputs[start:start + _STATISTICS_TOKENS])
        return LowRankFactors(self._weights.gate, statistics.root())


def usable_forms(spec: ModelSpec, forms: tuple[PredictorForm, ...]) -> tuple[PredictorForm, ...]:
    """Without ranks that the model's hidden size does not have."""
    return tuple(form for form in forms
                 if form.kind != 'low_rank' or form.size <= spec.hidden_size)


def least_bytes(spec: ModelSpec, forms: tuple[PredictorForm, ...]) -> int:
    """What predictors of all layers take at least."""
    return min(sum(np.dtype(kind).itemsize * math.prod(shape) for kind, shape
                   in predictor_layout(spec, [form] * spec.layers).values())
               for form in usable_forms(spec, forms))


def find_predictors(store: FlashStore, samples: Samples, forms: tuple[PredictorForm, ...],
                    budget: int, progress: Progress) -> list[FoundPredictor]:
    """One a layer: of `forms`, those that load least with `budget` bytes for all of them."""
    layers, forms = [], usable_forms(store.manifest.model, forms)
    for candidates in _candidates(store, samples):
        judge, tried = candidates.judge(), []
        for form in forms:
            predictor = candidates.predictor(form)
            tried.append(FoundPredictor(form, predictor.bytes, judge(predictor)))
        layers.append(tried)
        progress('calibrating', len(layers), store.manifest.model.layers)
    chosen = choose([[Candidate(one.bytes, 1 - one.quality.loaded) for one in tried]
                     for tried in layers], budget)
    return [tried[index] for tried, index in zip(layers, chosen, strict=True)]


def made_again(store: FlashStore, samples: Samples,
               found: list[FoundPredictor]) -> Iterator[Predictor]:
    """What was chosen, layer by layer: all candidates together would take far more memory."""
    for candidates, one in zip(_candidates(store, samples), found, strict=True):
        yield candidates.predictor(one.form)


def _candidates(store: FlashStore, samples: Samples) -> Iterator[LayerCandidates]:
    with NeuronReader(store) as reader:
        for layer in range(store.manifest.model.layers):
            yield LayerCandidates(FfnWeights(reader, store.manifest, layer), samples, layer)
