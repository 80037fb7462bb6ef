"""Measures how well a layer's input tells the experts of the next layer."""

import numpy as np
from numpy.typing import NDArray

from flash_llm_ros.convert.calibration import opened
from flash_llm_ros.convert.calibration_text import tokens_of
from flash_llm_ros.engine.model.expert_predictors import ExpertPredictors
from flash_llm_ros.store.flash_store import FlashStore
from flash_llm_ros.store.manifest import ExpertForesight

_TOKENS = 256       # in passes of a chunk, each of which reads nearly every expert


class _Recorder:
    """Of every layer and token: the experts that are foreseen for the next layer, and the used."""

    def __init__(self, predictors: ExpertPredictors, ids: NDArray[np.int64], layers: range) -> None:
        """`layers`: those with a predictor."""
        self._predictors, self._ids, self._layers = predictors, ids, layers
        self.right: list[NDArray[np.bool_]] = []
        self._likely = np.zeros((0, 0), np.int64)       # of the next layer to come

    def feed_forward(self, layer: int, ffn_input: NDArray[np.float32],
                     active: NDArray[np.uint8] | None) -> None:
        for likely, used in zip(self._likely, self._ids, strict=False):
            self.right.append(np.isin(likely, used))
        self._likely = self._likely[:0]
        if layer in self._layers:
            self._likely = self._predictors.likely(layer, ffn_input).copy()


def measure_foresight(store: FlashStore, texts: list[str]) -> ExpertForesight | None:
    """None where there is no next layer. FlashLlmError, ValueError."""
    if not store.manifest.model.foreseeing_layers:
        return None
    with opened(store) as engine:
        model = engine.model
        tokens = tokens_of(engine, texts, _TOKENS)[:engine.config.context_length]
        recorder = _Recorder(ExpertPredictors(store, model.chunk), model.feed_forward.routers.ids,
                             model.spec.foreseeing_layers)
        model.observer = recorder
        for start in range(0, len(tokens), model.chunk):
            model.forward(tokens[start:start + model.chunk], start, dense=True)
    recall = np.mean(recorder.right, axis=0)
    return ExpertForesight(len(tokens), [round(float(share), 4) for share in recall])
