"""Low-rank factors of a layer's rows, weighted by its inputs."""

import numpy as np
import pytest

from flash_llm_ros.convert.input_statistics import InputStatistics
from flash_llm_ros.convert.low_rank import LowRankFactors


@pytest.mark.parametrize('rank', [1, 4, 12])
def test_low_rank_factors_are_the_best_ones(rank: int) -> None:
    """Against the SVD of the outputs themselves, which no factors of that rank can beat."""
    random = np.random.default_rng(rank)
    weights = random.standard_normal((60, 24)).astype(np.float32)
    # Inputs that live in few directions, so that the plain SVD of the weights is far from best.
    inputs = (random.standard_normal((300, 24)) * np.geomspace(10, 0.1, 24)).astype(np.float32)
    statistics = InputStatistics(24)
    for part in np.array_split(inputs, 3):
        statistics.add(part)
    outer, inner = LowRankFactors(weights, statistics.root()).of_rank(rank)
    assert (outer.shape, inner.shape) == ((60, rank), (rank, 24))
    outputs = inputs.astype(np.float64) @ weights.T
    best = np.sqrt((np.linalg.svd(outputs, compute_uv=False)[rank:] ** 2).sum())
    error = np.linalg.norm(outputs - inputs @ inner.T @ outer.T)
    left, values, right = np.linalg.svd(weights.astype(np.float64))
    plain = inputs @ right[:rank].T @ (left[:, :rank] * values[:rank]).T
    assert best <= error * 1.0001 and error < 1.01 * best
    assert error < 0.9 * np.linalg.norm(outputs - plain)
