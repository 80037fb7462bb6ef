"""Predictors that decide: centred, thresholds that bound what is lost, on text of their own."""

from types import SimpleNamespace

import numpy as np
import pytest

from flash_llm_ros.convert.predictor import Predictor
from flash_llm_ros.convert.predictor_choice import Candidate, choose
from flash_llm_ros.convert.predictor_quality import LOSS, Judge, Quality
from flash_llm_ros.convert.samples import Samples
from flash_llm_ros.store.predictor_form import PredictorForm


def test_sketches_are_right_on_average() -> None:
    """Inputs with a mean, against gate rows in float64."""
    random = np.random.default_rng(3)
    gate = random.standard_normal((256, 64)).astype(np.float32)
    x = (random.standard_normal((200, 64)) + 2).astype(np.float32)
    form, mean = PredictorForm('sketch', 2), x.mean(axis=0)
    predictor = Predictor(form, {'sketch': gate}, mean, gate @ mean)
    nothing = np.zeros(64, np.float32)
    exact = x.astype(np.float64) @ gate.astype(np.float64).T
    plain = Predictor(form, {'sketch': gate}, nothing, gate @ nothing).scores(x) - exact
    centred = predictor.scores(x) - exact
    assert np.abs(centred.mean(axis=0)).max() < 1e-3
    assert centred.std() < 0.6 * plain.std()
    np.testing.assert_array_equal(predictor.tensors(7)['predictors.7.bias'],
                                  predictor.scores(np.zeros((1, 64)))[0])


def test_a_predictor_loses_what_it_may() -> None:
    """The threshold, by brute force: any higher one loses more of the squared contributions."""
    random = np.random.default_rng(4)
    scores = random.standard_normal((50, 30)).astype(np.float32)
    contributions = np.maximum(scores + 0.5 * random.standard_normal((50, 30)), 0)
    contributions[7] *= 100         # no token counts for more than another
    weights = SimpleNamespace(contributions=lambda x: contributions.astype(np.float32))
    quality = Judge(weights, scores, scores)(SimpleNamespace(scores=lambda x: x))
    shares = contributions ** 2 / (contributions ** 2).sum(axis=1, keepdims=True)

    def lost(threshold: float) -> float:
        return shares[scores <= threshold].sum() / len(scores)

    chosen = quality.threshold
    assert lost(chosen) <= LOSS < lost(scores[scores > chosen].min())
    assert quality.loaded == (scores > chosen).mean()


def test_quality_by_hand() -> None:
    contributions = np.array([[4, 0, 1], [0, 3, 2]], np.float32)
    chosen = np.array([[True, True, False], [False, True, False]])
    assert Quality.of(0.5, contributions, chosen) == Quality(
        0.5, pytest.approx(7 / 10), pytest.approx(2 / 3), 0.5, pytest.approx(2 / 6))
    nothing = Quality.of(0.5, np.zeros((2, 3), np.float32), np.zeros((2, 3), bool))
    assert (nothing.recall, nothing.precision, nothing.loaded) == (1, 0, 0)


@pytest.mark.parametrize(('budget', 'expected'), [
    (0, [0, 0]), (29, [0, 0]), (30, [1, 0]), (39, [1, 0]), (45, [1, 1]), (1000, [2, 2])])
def test_bytes_go_where_they_buy_most(budget: int, expected: list[int]) -> None:
    """By hand: steps of 10 bytes for 0.5, then of 15 for 0.3, of 50 for 0.1 each."""
    layers = [[Candidate(10, 0.2), Candidate(20, 0.7), Candidate(70, 0.8)],
              [Candidate(10, 0.4), Candidate(25, 0.7), Candidate(75, 0.8)]]
    assert choose(layers, budget) == expected


def test_held_out_text_is_other_text() -> None:
    rows = np.arange(800, dtype=np.float32)[:, None]
    samples = Samples(SimpleNamespace(read=lambda name, layer: rows), np.arange(800), 20)
    train, (first, second) = samples.train(0, 800), samples.held_out_halves(0, 800)
    assert len(train) == 600 and len(first) == len(second) == 100
    assert len({*train.ravel(), *first.ravel(), *second.ravel()}) == 800
    pieces = [{int(row) // 20 for row in part.ravel()} for part in (train, first, second)]
    assert pieces[0].isdisjoint(pieces[1] | pieces[2]) and pieces[1].isdisjoint(pieces[2])
    for most in (800, 100, 45):
        read = samples.held_out_pieces(most)
        assert len(read) == 10 and all((np.diff(piece) == 1).all() for piece in read)
        assert set(np.concatenate(read)) <= {*first.ravel(), *second.ravel()}
        assert sum(map(len, read)) == min(200, most // 10 * 10)
