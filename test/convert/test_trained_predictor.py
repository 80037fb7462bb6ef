"""Predictors trained by torch, and the texts that measurements calibrate and test with."""

import builtins
from types import SimpleNamespace

import numpy as np
import pytest

from bench.quality.calibration_text import calibration_text, word_runs
from bench.quality.held_out_text import held_out_text
from flash_llm_ros.calibrate.trained_predictor import TorchMissingError, train


def test_training_finds_what_was_planted() -> None:
    """One input, the widest, wrongly has a say; counted with plain NumPy on unseen inputs.

    Training gained 0.09 to 0.15 of recall with each of six seeds.
    """
    random = np.random.default_rng(0)
    inner = (random.standard_normal((8, 32)) / 6).astype(np.float32)
    outer = (random.standard_normal((128, 8)) / 3).astype(np.float32)
    x = random.standard_normal((3000, 32)).astype(np.float32)
    inner[:, 0], x[:, 0] = 0, 20 * x[:, 0]
    wrong = inner.copy()
    wrong[:, 0] = inner.std() / 4

    def scores(outer: np.ndarray, inner: np.ndarray) -> np.ndarray:
        gate, up = np.split(x.astype(np.float64) @ inner.T @ outer.T, 2, axis=1)
        return np.abs(gate / (1 + np.exp(-gate)) * up)

    sizes = scores(outer, inner).astype(np.float32)
    limit = float(np.quantile(sizes, 0.8))

    def recall(outer: np.ndarray, inner: np.ndarray) -> float:
        found, active = scores(outer, inner)[2500:], sizes[2500:] > limit
        return (active & (found > np.quantile(found, 0.8))).sum() / active.sum()

    seen = x[:2500], sizes[:2500], limit, 'split', SimpleNamespace(activation='silu'), None
    trained = train(wrong, outer, *seen)
    assert [part.shape for part in trained] == [outer.shape, inner.shape]
    assert recall(*trained) > recall(outer, wrong) + 0.05
    np.testing.assert_array_equal(trained[0], train(wrong, outer, *seen)[0])


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
