"""Predictors trained by torch, and the texts that measurements calibrate and test with."""

import builtins

from calibration_text import calibration_text, word_runs
from held_out_text import held_out_text
import numpy as np
import pytest

from flash_llm_ros.calibrate.ffn_weights import FfnWeights
from flash_llm_ros.calibrate.low_rank import InputStatistics, LowRankFactors
from flash_llm_ros.calibrate.predictor import predicted_rows
from flash_llm_ros.calibrate.trained_predictor import TorchMissingError, train
from flash_llm_ros.store.flash_store import FlashStore
from flash_llm_ros.store.neuron_reader import NeuronReader


def test_training_finds_more_of_what_is_active(fp16_store) -> None:
    """From disturbed factors; counted with plain NumPy on inputs that training did not see."""
    store = FlashStore.open(fp16_store)
    with NeuronReader(store) as reader:
        weights = FfnWeights(reader, store.manifest, 1)
    random = np.random.default_rng(0)
    mix = random.standard_normal((64, 64)) * np.geomspace(3, 0.3, 64)
    x = (random.standard_normal((3000, 64)) @ mix).astype(np.float32)
    sizes = np.abs(weights.activations(x))
    limit = float(np.quantile(sizes, 0.7))
    statistics = InputStatistics(64)
    statistics.add(x[:2500])
    outer, inner = LowRankFactors(predicted_rows(weights, 'split'), statistics.root()).of_rank(16)
    outer += random.standard_normal(outer.shape).astype(np.float32) * outer.std()

    def recall(outer: np.ndarray, inner: np.ndarray) -> float:
        gate, up = np.split(x[2500:].astype(np.float64) @ inner.T @ outer.T, 2, axis=1)
        scores = np.abs(gate / (1 + np.exp(-gate)) * up)
        active = sizes[2500:] > limit
        return (active & (scores > np.quantile(scores, 0.7))).sum() / active.sum()

    trained = train(inner, outer, x[:2500], sizes[:2500], limit, 'split', store.manifest.model,
                    None)
    assert [part.shape for part in trained] == [outer.shape, inner.shape]
    assert recall(*trained) > recall(outer, inner) + 0.005
    again = train(inner, outer, x[:2500], sizes[:2500], limit, 'split', store.manifest.model,
                  None)
    np.testing.assert_array_equal(trained[0], again[0])


def test_without_torch_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = builtins.__import__

    def missing(name: str, *arguments: object, **more: object) -> object:
        if name == 'torch':
            raise ImportError(name)
        return plain(name, *arguments, **more)

    monkeypatch.setattr(builtins, '__import__', missing)
    empty = np.zeros((1, 1), np.float32)
    with pytest.raises(TorchMissingError, match='calibrate'):
        train(empty, empty, empty, empty, 0.0, 'split', None, None)


def test_held_out_text_was_never_seen_in_calibration() -> None:
    seen, held_out = word_runs(calibration_text()), word_runs(held_out_text())
    assert len(seen) > 30_000 and len(held_out) > 5_000
    assert seen.isdisjoint(held_out)
