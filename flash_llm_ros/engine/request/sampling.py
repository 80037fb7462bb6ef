"""Choosing the next token from the logits."""

from collections.abc import Callable
from dataclasses import dataclass
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flash_llm_ros.store.errors import ErrorCode, FlashLlmError


@dataclass(frozen=True)
class SamplingParams:
    """Greedy by default. Raises FlashLlmError(INVALID_SAMPLING) naming the field."""

    temperature: float = 0.0            # 0: greedy
    top_k: int = 0                      # 0: all tokens
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        self._check('temperature', float, lambda x: 0 <= x < math.inf, 'finite and at least 0')
        self._check('top_k', int, lambda x: x >= 0, 'an integer, 0 (all tokens) or more')
        self._check('top_p', float, lambda x: 0 < x <= 1, 'in (0, 1]')
        self._check('min_p', float, lambda x: 0 <= x <= 1, 'in [0, 1]')
        self._check('repetition_penalty', float, lambda x: 0 < x < math.inf,
                    'finite and above 0')
        self._check('seed', int, lambda x: 0 <= x < 2 ** 64, 'an integer in [0, 2^64)')

    def _check(self, name: str, kind: type, valid: Callable[[Any], bool], right: str) -> None:
        value = getattr(self, name)
        if not isinstance(value, (int, kind)) or isinstance(value, bool) or not valid(value):
            raise FlashLlmError(ErrorCode.INVALID_SAMPLING,
                                f'{name} is {value!r}; it must be {right}.')


class Sampler:
    """One request's random state and the tokens it has seen."""

    def __init__(self, params: SamplingParams, seen: NDArray[np.int64], vocabulary: int) -> None:
        self._params = params
        self._random = np.random.Generator(np.random.PCG64(params.seed))
        self._seen = np.zeros(vocabulary, bool)
        self._seen[seen] = True

    def fork(self) -> 'Sampler':
        """One that will draw with the same random numbers."""
        fork = Sampler(self._params, np.empty(0, np.int64), 0)
        fork._random.bit_generator.state = self._random.bit_generator.state
        fork._seen = self._seen.copy()
        return fork

    def see(self, token: int) -> None:
        """A token that was not picked has joined the answer."""
        self._seen[token] = True

    def pick(self, logits: NDArray[np.float32], allowed: NDArray[np.bool_] | None = None) -> int:
        """The next token; `logits` is float32 [vocabulary] and is left as it is.

        `allowed` says which tokens it may be, [vocabulary] with at least one; None: any.

        Raises FlashLlmError(STORE_CORRUPT) when they are no numbers: better no text than noise.
        """
        params = self._params
        if not math.isfinite(logits.max()):
            raise FlashLlmError(
                ErrorCode.STORE_CORRUPT,
                "The store's weights give logits that are not finite numbers. `flash_llm verify "
                'STORE` says whether they are as converted; then its checkpoint is wrong.')
        if params.temperature == 0 and params.repetition_penalty == 1.0:
            scores = logits if allowed is None else np.where(allowed, logits, -math.inf)
            token = int(scores.argmax())
            self._seen[token] = True
            return token
        scores = logits.astype(np.float64)
        if params.repetition_penalty != 1.0:    # CTRL, arXiv 1909.05858
            seen = scores[self._seen]
            scores[self._seen] = np.where(seen > 0, seen / params.repetition_penalty,
                                          seen * params.repetition_penalty)
        if allowed is not None:
            scores[~allowed] = -math.inf
        token = int(scores.argmax()) if params.temperature == 0 else self._draw(scores)
        self._seen[token] = True
        return token

    def _draw(self, scores: NDArray[np.float64]) -> int:
        """Temperature, then top-k, top-p and min-p, each on what the one before has left."""
        params = self._params
        # In place: a vocabulary of 150,000 tokens takes 1.2 MB an array, and three are planned.
        np.negative(scores, out=scores)
        order = np.argsort(scores, kind='stable')[:np.count_nonzero(scores < math.inf)]
        if params.top_k:
            order = order[:params.top_k]
        weights = scores[order]
        sums = scores[:len(weights)]
        # Subtract before dividing: a tiny temperature then underflows to greedy, not to NaN.
        weights -= weights[0]
        with np.errstate(over='ignore'):
            weights /= -params.temperature
        np.exp(weights, out=weights)
        weights /= weights.sum()
        # The likeliest come first, so that each limit leaves a prefix.
        if params.top_p < 1:                    # arXiv 1904.09751
            before = np.cumsum(weights, out=sums)
            before -= weights
            weights = weights[:np.count_nonzero(before < params.top_p)]
        if params.min_p > 0:                    # arXiv 2407.01082
            weights = weights[:np.count_nonzero(weights >= params.min_p * weights[0])]
        bounds = np.cumsum(weights, out=sums[:len(weights)])
        chosen = np.searchsorted(bounds, self._random.random() * bounds[-1], side='right')
        return int(order[min(chosen, len(weights) - 1)])
