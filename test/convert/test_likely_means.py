"""Means drawn towards each other: nearer to the truth than the plain ones."""

import numpy as np
import pytest

from flash_llm_ros.calibrate.likely_means import likely_means


def drawn(random: np.random.Generator, truth: np.ndarray, tokens: int) -> np.ndarray:
    """Samples of these means; some tokens are harder than others, in every row."""
    own = random.gamma(0.5, 2.0, (len(truth), tokens))
    hard = random.gamma(1.0, 1.0, tokens)
    return truth[:, None] * own * hard


@pytest.mark.parametrize('spread', [0.0, 0.3, 1.0])
def test_ratios_are_nearer_to_the_truth_than_those_of_plain_means(spread: float) -> None:
    random = np.random.default_rng(7)
    ours, plain = [], []
    for _ in range(200):
        truth = np.exp(spread * random.standard_normal(24))
        samples = drawn(random, truth, 64)
        for found, errors in ((likely_means(samples), ours), (samples.mean(axis=1), plain)):
            off = np.log(found) - np.log(truth)
            errors.append(np.square(off - off.mean()).mean())
    assert np.mean(ours) < np.mean(plain)
    if spread == 0:
        assert np.mean(ours) < 0.3 * np.mean(plain)


def test_what_is_sure_stays() -> None:
    random = np.random.default_rng(8)
    truth = np.exp(random.standard_normal(20))
    samples = truth[:, None] * (1 + 0.01 * random.standard_normal((20, 500)))
    np.testing.assert_allclose(likely_means(samples), samples.mean(axis=1), rtol=0.002)


def test_an_error_of_all_rows_alike_is_none() -> None:
    """Only a token's share of the whole differs: rows are in the ratio of every token."""
    random = np.random.default_rng(9)
    samples = np.outer([1.0, 2.0, 8.0], random.exponential(1.0, 30))
    found = likely_means(samples)
    np.testing.assert_allclose(found / found[0], [1, 2, 8], rtol=1e-9)


def test_nothing_measured_is_alike_and_zeros_are_little() -> None:
    np.testing.assert_array_equal(likely_means(np.zeros((3, 5))), 1)
    found = likely_means(np.array([[0.0, 0.0], [1.0, 1.001], [1.0, 1.001]]))
    assert 0 < found[0] < 0.01 * found[1]
