"""Predictors that decide: centred, thresholds that bound what is lost, on text of their own."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np

from flash_llm_ros.convert.predictor import Predictor
from flash_llm_ros.convert.predictor_quality import RELU_LOSS, LayerSamples, judge_bundled
from flash_llm_ros.convert.samples import Samples
from flash_llm_ros.store.flash_store import FlashStore
from flash_llm_ros.store.predictor_graph import PredictorForm


def test_centred_sketches_are_right_on_average(fp16_store: Path) -> None:
    """Of a bundled layout's predictor: inputs with a mean, against gate rows in float64."""
    spec = FlashStore.open(fp16_store).manifest.model
    random = np.random.default_rng(3)
    gate = random.standard_normal((spec.feed_forward.size, spec.hidden_size)).astype(np.float32)
    x = (random.standard_normal((200, spec.hidden_size)) + 2).astype(np.float32)
    predictor = Predictor(PredictorForm('sketch', 2), {'sketch': gate}, 'bundled', spec)
    exact = x.astype(np.float64) @ gate.astype(np.float64).T
    plain = predictor.scores(x) - exact
    mean = x.mean(axis=0)
    predictor.centre(mean, gate @ mean)
    centred = predictor.scores(x) - exact
    assert np.abs(centred.mean(axis=0)).max() < 1e-3
    assert centred.std() < 0.6 * plain.std()
    np.testing.assert_array_equal(predictor.tensors(7)['predictors.7.bias'],
                                  predictor.scores(np.zeros((1, spec.hidden_size)))[0])


def test_a_relu_predictor_loses_what_it_may() -> None:
    """The threshold, by brute force: any higher one loses more of the squared contributions."""
    random = np.random.default_rng(4)
    scores = random.standard_normal((50, 30)).astype(np.float32)
    contributions = np.maximum(scores + 0.5 * random.standard_normal((50, 30)), 0)
    contributions[7] *= 100         # no token counts for more than another
    weights = SimpleNamespace(contributions=lambda x: contributions.astype(np.float32))
    judged = judge_bundled(weights, LayerSamples(scores, scores))(
        SimpleNamespace(scores=lambda x: x))
    shares = contributions ** 2 / (contributions ** 2).sum(axis=1, keepdims=True)

    def lost(threshold: float) -> float:
        return shares[scores <= threshold].sum() / len(scores)

    chosen, = judged.thresholds
    assert lost(chosen) <= RELU_LOSS < lost(scores[scores > chosen].min())
    assert judged.quality.loaded == (scores > chosen).mean()


def test_held_out_halves_are_other_pieces() -> None:
    rows = np.arange(800, dtype=np.float32)[:, None]
    samples = Samples(SimpleNamespace(read=lambda layer: rows), np.zeros(800, np.int64), 20)
    train, held_out = samples.train(0, 800), samples.held_out(0, 800)
    first, second = samples.held_out_halves(0, 800)
    assert len(train) == 600 and len(first) == len(second) == 100
    assert sorted(np.concatenate([first, second]).ravel()) == sorted(held_out.ravel())
    assert {int(row) // 20 for row in first.ravel()}.isdisjoint(
        int(row) // 20 for row in second.ravel())
