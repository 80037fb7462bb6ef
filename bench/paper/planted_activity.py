"""Which FFN neurons fire, token after token, with the statistics of a ReLU model of the OPT kind.

A neuron fires when its score is above its threshold, and is predicted when what a predictor sees
of the score (the score and an error) is above a lower one. Scores are standard normal and follow
an autoregression from token to token, which is where temporal locality comes from; thresholds are
such that neuron frequencies follow a power law, which is where hot neurons come from.

The defaults give the figures published for OPT-6.7B: 3 % of a layer fire, 10 % are predicted (95 %
of those that fire, 7 % of the others), and of the predicted ones 2.4 % of the layer are new in each
token when the least recently used 24 % are kept. What is predicted early, a layer ahead, comes from
a score that correlates by 0.95 with the predictor's, about as the inputs of neighbouring layers do.
"""

from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

_MOST = 0.98        # how often the hottest neurons are predicted or fire


class Token(NamedTuple):
    """0 or 1 for each neuron, uint8 [layers, neurons]."""

    fires: NDArray[np.uint8]
    predicted: NDArray[np.uint8]
    early: NDArray[np.uint8]        # predicted from the layer before


class PlantedActivity:
    """The same activity for the same seed and shape, one token after the other.

    `fire` and `predict` are mean shares of a layer; the neuron of rank r has a frequency
    proportional to r ** -exponent, up to 98 %. `locality` is the correlation of a neuron's score
    with itself one token later, `predictor` that of what the predictor sees with the score, and
    `early` that of what it sees with what it sees a layer ahead.
    ValueError names an argument that is wrong.
    """

    def __init__(self, layers: int, neurons: int, seed: int = 0, *, fire: float = 0.03,
                 predict: float = 0.10, exponent: float = 0.9, locality: float = 0.7,
                 predictor: float = 0.875, early: float = 0.95) -> None:
        for name, value in (('layers', layers), ('neurons', neurons)):
            _check(value >= 1, name, value, 'at least 1')
        _check(0 < fire <= predict, 'fire', fire, f'above 0, at most predict ({predict})')
        _check(predict <= 0.5, 'predict', predict, 'at most 0.5')
        _check(exponent >= 0, 'exponent', exponent, 'at least 0')
        for name, value in (('locality', locality), ('predictor', predictor),
                            ('early', early)):
            _check(0 <= value < 1, name, value, 'at least 0, below 1')
        self._locality, self._predictor, self._early = locality, predictor, early
        self._random = np.random.default_rng(seed)
        ranks = np.array([self._random.permutation(neurons) for _ in range(layers)])
        self.frequencies = power_law(neurons, predict, exponent)[ranks]
        self._predicted_above = _thresholds(neurons, predict, exponent)[ranks]
        self._fires_above = _thresholds(neurons, fire, exponent)[ranks]
        self._seen = self._noise()

    def next(self) -> Token:
        self._seen = _mixed(self._seen, self._noise(), self._locality)
        score = _mixed(self._seen, self._noise(), self._predictor)
        early = _mixed(self._seen, self._noise(), self._early)
        return Token((score > self._fires_above).view(np.uint8),
                     (self._seen > self._predicted_above).view(np.uint8),
                     (early > self._predicted_above).view(np.uint8))

    def predicted(self, tokens: int) -> NDArray[np.uint8]:
        """What is predicted for some tokens, uint8 [tokens, layers, neurons]."""
        return np.array([self.next().predicted for _ in range(tokens)])

    def _noise(self) -> NDArray[np.float32]:
        return self._random.standard_normal(self._predicted_above.shape, np.float32)


def power_law(neurons: int, mean: float, exponent: float) -> NDArray[np.float64]:
    """Frequencies by rank, float64 [neurons], with the given mean; none is above 98 %."""
    law = np.arange(1.0, neurons + 1) ** -exponent
    low, high = 0.0, float(neurons) ** (exponent + 1)
    for _ in range(200):        # bisection of the factor; the mean grows with it
        factor = (low + high) / 2
        if np.minimum(_MOST, factor * law).mean() < mean:
            low = factor
        else:
            high = factor
    return np.minimum(_MOST, high * law)


def _thresholds(neurons: int, mean: float, exponent: float) -> NDArray[np.float32]:
    inverse = NormalDist().inv_cdf
    return np.array([inverse(1 - frequency) for frequency in power_law(neurons, mean, exponent)],
                    np.float32)


def _mixed(value: NDArray[np.float32], noise: NDArray[np.float32],
           correlation: float) -> NDArray[np.float32]:
    """Standard normal again, with that correlation to `value`."""
    return np.float32(correlation) * value + np.float32((1 - correlation ** 2) ** 0.5) * noise


def _check(right: bool, field: str, value: object, wanted: str) -> None:
    if not right:
        raise ValueError(f'{field}: {value!r} is wrong, must be {wanted}')
