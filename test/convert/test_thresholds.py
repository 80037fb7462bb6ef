"""Thresholds, their shares, and the choice of predictors, against brute force."""

from itertools import product

from hypothesis import given, settings
from hypothesis import strategies as st
import numpy as np
import pytest

from flash_llm_ros.calibrate.threshold_search import affordable_sparsity
from flash_llm_ros.calibrate.thresholds import (
    SHARES,
    output_errors,
    share_out,
    size_quantiles,
    threshold,
)
from flash_llm_ros.convert.ffn_weights import FfnWeights
from flash_llm_ros.convert.perplexity_growth import Growth
from flash_llm_ros.convert.predictor_choice import Candidate, choose
from flash_llm_ros.convert.predictor_quality import Quality
from flash_llm_ros.store.flash_store import FlashStore
from flash_llm_ros.store.neuron_reader import NeuronReader


@pytest.fixture(scope='module')
def weights(fp16_store) -> FfnWeights:
    store = FlashStore.open(fp16_store)
    with NeuronReader(store) as reader:
        return FfnWeights(reader, store.manifest, 1)


@pytest.mark.parametrize('mean', [0.1, 0.5, 0.65, 0.95])
def test_shares_are_the_best_of_all(mean: float) -> None:
    random = np.random.default_rng(round(100 * mean))
    losses = np.cumsum(random.random((3, len(SHARES))) ** 3, axis=1)     # not convex
    found = share_out(losses, mean)
    assert found.mean() == pytest.approx(mean, abs=0.05 / 3 + 1e-9)
    units = round(20 * found.sum())
    assert units == round(20 * 3 * mean)
    best = min(sum(losses[layer, one] for layer, one in enumerate(choice))
               for choice in product(range(len(SHARES)), repeat=3) if sum(choice) == units)
    ours = sum(losses[layer, round(20 * share)] for layer, share in enumerate(found))
    assert ours == pytest.approx(best, rel=1e-12)


def test_equal_layers_share_alike() -> None:
    losses = np.tile(SHARES ** 2, (7, 1))
    np.testing.assert_allclose(share_out(losses, 0.6), 0.6)


@pytest.mark.parametrize('share', [0.05, 0.333, 0.5, 0.9])
def test_a_threshold_leaves_out_its_share(weights: FfnWeights, share: float) -> None:
    x = np.random.default_rng(1).standard_normal((200, 64)).astype(np.float32)
    gate, up = (rows.astype(np.float64) for rows in (weights.gate, weights.up))
    z = x @ gate.T
    exact = np.abs(z / (1 + np.exp(-z)) * (x @ up.T))
    limit = threshold(size_quantiles(weights.activations(x)), share)
    assert (exact <= limit).mean() == pytest.approx(share, abs=0.003)
    assert threshold(size_quantiles(exact), 0.0) == 0.0


def test_output_errors_are_those_of_the_neurons_left_out(weights: FfnWeights) -> None:
    x = np.random.default_rng(2).standard_normal((40, 64)).astype(np.float32)
    quantiles = size_quantiles(weights.activations(x))
    gate, up, down = (rows.astype(np.float64) for rows in (weights.gate, weights.up, weights.down))
    z = x @ gate.T
    h = z / (1 + np.exp(-z)) * (x @ up.T)
    size = np.abs(h)
    found = output_errors(weights, x, quantiles)
    assert found[0] == 0
    for index in (4, 10, 19):
        left_out = size <= threshold(quantiles, SHARES[index])
        missing = np.array([sum(h[t, i] * down[i] for i in np.flatnonzero(left_out[t]))
                            for t in range(len(x))])
        assert found[index] == pytest.approx((missing ** 2).sum(axis=1).mean(), rel=0.02)


def test_the_affordable_sparsity_is_the_largest_before_the_loss_may_grow_too_much() -> None:
    growth = {'0.40': Growth(0.005, 0.002), '0.60': Growth(0.030, 0.010), '0.80': Growth(0.01, 0)}
    found = affordable_sparsity(growth, 0.025)
    bound = np.interp([found, found + 0.01], [0.4, 0.6], [0.009, 0.050])
    assert np.exp(bound[0]) <= 1.025 < np.exp(bound[1])
    assert affordable_sparsity(growth, 0.5) == 0.8
    assert affordable_sparsity({'0.30': Growth(0.7, 0.0)}, 0.01) == 0.0


def test_growth_is_surer_than_the_perplexities() -> None:
    """Of a thousand texts with a known growth, the bound is above it in all but a few."""
    random = np.random.default_rng(5)
    exact = random.exponential(3, (1000, 400))
    losses = exact + 0.02 + 0.2 * random.standard_normal(exact.shape)
    found = [Growth.of(*pair) for pair in zip(losses, exact, strict=True)]
    assert np.mean([one.nats for one in found]) == pytest.approx(0.02, abs=0.001)
    assert np.mean([one.error for one in found]) == pytest.approx(0.2 / 20, rel=0.02)
    assert 0.96 < np.mean([one.most_nats > 0.02 for one in found]) < 0.99
    one = Growth.of(losses[0], exact[0])
    assert one.relative == pytest.approx(np.exp(losses[0].mean()) / np.exp(exact[0].mean()))


def test_quality_counts_neurons_and_contribution() -> None:
    random = np.random.default_rng(3)
    size, guess = random.random((30, 50)).astype(np.float32), random.random((30, 50)) > 0.4
    active = size > 0.7
    hit = wanted = kept = total = right = chosen = 0.0
    for value, is_active, is_chosen in zip(size.flat, active.flat, guess.flat, strict=True):
        total += value
        wanted += value * is_active
        kept += value * is_chosen
        hit += value * (is_active and is_chosen)
        right += is_active and is_chosen
        chosen += is_chosen
    found = Quality.of(size, active, guess)
    assert [*vars(found).values()] == pytest.approx(
        [hit / wanted, right / chosen, kept / total, chosen / size.size])


candidates = st.lists(st.builds(Candidate, st.integers(1, 30), st.floats(0, 1)), min_size=1,
                      max_size=5)


@settings(max_examples=200)
@given(st.lists(candidates, min_size=1, max_size=3), st.integers(1, 100))
def test_no_affordable_choice_is_much_better(layers: list[list[Candidate]], budget: int) -> None:
    """Steps by gain per byte miss the best by less than the gain of one layer."""
    chosen = choose(layers, budget)
    least = sum(min(one.bytes for one in layer) for layer in layers)
    spent = sum(layer[index].bytes for layer, index in zip(layers, chosen, strict=True))
    assert spent <= max(budget, least)
    best = max(sum(one.value for one in choice) for choice in product(*layers)
                if sum(one.bytes for one in choice) <= max(budget, least))
    value = sum(layer[index].value for layer, index in zip(layers, chosen, strict=True))
    most_gain = max(max(one.value for one in layer) - min(one.value for one in layer)
                    for layer in layers)
    assert value <= best + 1e-9
    assert value >= best - most_gain - 1e-9


def test_bytes_go_where_they_buy_most() -> None:
    little, much = ([Candidate(10, 0.5), Candidate(20, 0.6)],
                    [Candidate(10, 0.5), Candidate(20, 0.9)])
    assert choose([little, much, little], 40) == [0, 1, 0]
    assert choose([little, much, little], 50) == [1, 1, 0] or choose(
        [little, much, little], 50) == [0, 1, 1]
    assert choose([little, much, little], 5) == [0, 0, 0]
