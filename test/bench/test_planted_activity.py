"""Planted neuron activity has the statistics that it promises."""

import numpy as np
import pytest

from bench.paper.planted_activity import PlantedActivity, power_law

NEURONS, TOKENS = 8192, 80


@pytest.fixture(scope='module')
def tokens():
    """What fires and what is predicted, each bool [tokens, neurons], and the frequencies."""
    activity = PlantedActivity(1, NEURONS, seed=3)
    fires, predicted, _ = zip(*(activity.next() for _ in range(TOKENS)), strict=True)
    return (np.array(fires)[:, 0] > 0, np.array(predicted)[:, 0] > 0, activity.frequencies[0])


def new_per_token(predicted, kept):
    """Share of the neurons that had to be fetched per token, brute force, least recent out first.

    Counted from the tenth token on.
    """
    last_use = np.full(NEURONS, -1)
    inside = np.zeros(NEURONS, bool)
    new = []
    for token, wanted in enumerate(predicted):
        new.append(np.count_nonzero(wanted & ~inside))
        last_use[wanted] = token
        inside |= wanted
        surplus = np.count_nonzero(inside) - kept
        if surplus > 0:
            candidates = np.flatnonzero(inside)
            inside[candidates[np.argsort(last_use[candidates], kind='stable')[:surplus]]] = False
    return np.mean(new[10:]) / NEURONS


def test_three_percent_fire_and_the_predictor_is_as_good_as_the_papers(tokens):
    fires, predicted, _ = tokens
    assert fires.mean() == pytest.approx(0.03, rel=0.05)
    assert predicted.mean() == pytest.approx(0.10, rel=0.03)
    assert (fires & ~predicted).sum() / fires.sum() == pytest.approx(0.05, abs=0.01)
    assert (predicted & ~fires).sum() / (~fires).sum() == pytest.approx(0.07, abs=0.01)


def test_a_quarter_of_the_layer_saves_three_quarters_of_the_reads(tokens):
    _, predicted, _ = tokens
    assert new_per_token(predicted, round(0.24 * NEURONS)) == pytest.approx(0.024, abs=0.0015)
    five = [predicted[start:start + 5].any(axis=0).mean() for start in range(TOKENS - 5)]
    assert np.mean(five) == pytest.approx(0.24, abs=0.02)


def test_frequencies_follow_the_power_law(tokens):
    """Counted ones agree with the planted ones, whose logarithms lie on a line over the rank's."""
    _, predicted, planted = tokens
    order = np.argsort(-planted, kind='stable')
    counted = predicted.mean(axis=0)[order]
    for low, high in ((0, 64), (64, 512), (512, 2048), (2048, NEURONS)):
        assert counted[low:high].mean() == pytest.approx(planted[order][low:high].mean(), rel=0.1)
    law = np.sort(planted)[::-1]
    below = np.flatnonzero(law < 0.98)
    slope, _ = np.polyfit(np.log(below + 1), np.log(law[below]), 1)
    assert slope == pytest.approx(-0.9, abs=1e-6)


def test_most_of_a_layer_is_known_a_layer_early():
    activity = PlantedActivity(2, NEURONS, seed=4)
    for _ in range(3):
        _, predicted, early = (part > 0 for part in activity.next())
        assert early.mean() == pytest.approx(0.10, rel=0.05)
        assert (early & predicted).sum() / predicted.sum() == pytest.approx(0.84, abs=0.02)


@pytest.mark.parametrize(('mean', 'exponent'), [(0.03, 0.9), (0.1, 0.9), (0.1, 0), (0.5, 2)])
def test_the_law_has_the_wanted_mean(mean, exponent):
    law = power_law(1000, mean, exponent)
    assert law.max() <= 0.98
    assert law.mean() == pytest.approx(mean, rel=1e-6)


def test_without_locality_tokens_have_nothing_in_common():
    predicted = PlantedActivity(1, NEURONS, exponent=0, locality=0).predicted(20)[:, 0] > 0
    both = (predicted[1:] & predicted[:-1]).mean()
    assert both == pytest.approx(0.1 * 0.1, rel=0.1)


def test_a_seed_gives_the_same_tokens_again():
    first, second, other = (PlantedActivity(2, 64, seed).predicted(3) for seed in (1, 1, 2))
    assert first.shape == (3, 2, 64)
    assert first.dtype == np.uint8
    assert np.array_equal(first, second)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize(('name', 'value', 'wanted'), [
    ('layers', 0, 'at least 1'), ('neurons', 0, 'at least 1'), ('fire', 0.2, 'at most predict'),
    ('fire', 0, 'above 0'), ('predict', 0.6, 'at most 0.5'), ('exponent', -1, 'at least 0'),
    ('locality', 1, 'below 1'), ('predictor', -0.1, 'at least 0'),
    ('early', 1, 'below 1')])
def test_wrong_arguments_are_named(name, value, wanted):
    arguments = {'layers': 1, 'neurons': 8, name: value}
    with pytest.raises(ValueError, match=f'^{name}: .*{wanted}'):
        PlantedActivity(**arguments)
