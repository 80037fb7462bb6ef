"""Sampling against the logits processors of transformers, and every value that is no choice."""

from hypothesis import given, settings
from hypothesis import strategies as st
import numpy as np
import pytest
from refusals import assert_error
import torch
from transformers.generation import logits_process as reference

from flash_llm_ros.engine.request.sampling import Sampler, SamplingParams
from flash_llm_ros.store.errors import ErrorCode

VOCABULARY = 40


def random_logits(seed: int, spread: float = 2.0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, spread, VOCABULARY).astype(np.float32)


def expected_probabilities(logits: np.ndarray, seen: list[int], **params: float) -> np.ndarray:
    """float64 [vocabulary], by transformers' processors in the order of its `generate`."""
    ids, scores = torch.tensor([seen], dtype=torch.int64), torch.tensor(logits[None]).double()
    if params.get('repetition_penalty', 1.0) != 1.0:
        scores = reference.RepetitionPenaltyLogitsProcessor(params['repetition_penalty'])(
            ids, scores)
    scores = reference.TemperatureLogitsWarper(params.get('temperature', 1.0))(ids, scores)
    if params.get('top_k'):
        scores = reference.TopKLogitsWarper(params['top_k'])(ids, scores)
    if params.get('top_p', 1.0) < 1:
        scores = reference.TopPLogitsWarper(params['top_p'])(ids, scores)
    if params.get('min_p', 0.0) > 0:
        scores = reference.MinPLogitsWarper(params['min_p'])(ids, scores)
    return scores.softmax(-1)[0].numpy()


def drawn(logits: np.ndarray, seen: list[int], draws: int, **params: float) -> np.ndarray:
    """How often each token comes; a sampler's tokens count as seen, so each gets its own."""
    counts = np.zeros(VOCABULARY, int)
    for seed in range(draws):
        sampler = Sampler(SamplingParams(**{'temperature': 1.0, **params, 'seed': seed}),
                          np.array(seen, np.int64), VOCABULARY)
        counts[sampler.pick(logits)] += 1
    return counts


@pytest.mark.parametrize('params', [
    {}, {'temperature': 0.3}, {'temperature': 3.0}, {'top_k': 5}, {'top_k': 1}, {'top_k': 1000},
    {'top_p': 0.5}, {'top_p': 0.9}, {'top_p': 1e-9}, {'min_p': 0.2}, {'min_p': 1.0},
    {'repetition_penalty': 1.7}, {'repetition_penalty': 0.5},
    {'temperature': 0.8, 'top_k': 12, 'top_p': 0.8, 'min_p': 0.1, 'repetition_penalty': 1.3},
], ids=str)
def test_distribution(params: dict[str, float]) -> None:
    logits, seen, draws = random_logits(1), [0, 3, 3, 17, 39], 4000
    expected = expected_probabilities(logits, seen, **params)
    counts = drawn(logits, seen, draws, **params)
    assert not counts[expected == 0].any()
    likely = expected * draws >= 5
    assert counts[expected * draws >= 20].all()
    difference = (counts - expected * draws)[likely] ** 2 / (expected * draws)[likely]
    # Chi-square with `likely` degrees of freedom: mean plus five standard deviations.
    assert difference.sum() < likely.sum() + 5 * (2 * likely.sum()) ** 0.5


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 10 ** 6), temperature=st.floats(0.05, 5), top_k=st.integers(0, 45),
       top_p=st.floats(0.01, 1), min_p=st.floats(0, 1), penalty=st.floats(0.2, 5))
def test_support(seed: int, temperature: float, top_k: int, top_p: float, min_p: float,
                 penalty: float) -> None:
    """Any combination: only tokens that transformers leaves in come out."""
    logits, seen = random_logits(seed, 3.0), [seed % VOCABULARY, (seed // 7) % VOCABULARY]
    params = {'temperature': temperature, 'top_k': top_k, 'top_p': top_p, 'min_p': min_p,
              'repetition_penalty': penalty}
    # A hair wider, for cuts that lie on a rounding error.
    allowed = expected_probabilities(logits, seen, **{
        **params, 'top_p': min(1.0, top_p + 1e-9), 'min_p': min_p * (1 - 1e-9)}) > 0
    assert not drawn(logits, seen, 20, **params)[~allowed].any()


def test_greedy_is_the_first_of_the_largest() -> None:
    logits = random_logits(2)
    logits[[7, 9]] = 50
    sampler = Sampler(SamplingParams(), np.array([0]), VOCABULARY)
    assert [sampler.pick(logits) for _ in range(3)] == [7, 7, 7]


def test_greedy_with_penalty_counts_what_it_has_made() -> None:
    logits = np.zeros(VOCABULARY, np.float32)
    logits[:4] = [4.0, 3.5, -1.0, 3.0]
    sampler = Sampler(SamplingParams(repetition_penalty=2.0), np.array([3]), VOCABULARY)
    # 0 first; then 0 counts 2, so 1; then 0 and 1 count 2 and 1.75 and 3 counts 1.5.
    assert [sampler.pick(logits) for _ in range(3)] == [0, 1, 0]
    np.testing.assert_array_equal(logits[:4], np.array([4.0, 3.5, -1.0, 3.0], np.float32))


def test_the_same_seed_gives_the_same_tokens() -> None:
    def tokens(seed: int) -> list[int]:
        sampler = Sampler(SamplingParams(temperature=1.5, seed=seed), np.array([0]), VOCABULARY)
        return [sampler.pick(random_logits(i)) for i in range(30)]

    assert tokens(5) == tokens(5) == tokens(5)
    assert len({tuple(tokens(seed)) for seed in (0, 1, 5, 2 ** 64 - 1)}) == 4


@pytest.mark.parametrize('temperature', [1e-6, 1e-300, 5e-324])
def test_tiny_temperature_is_greedy(temperature: float) -> None:
    sampler = Sampler(SamplingParams(temperature=temperature), np.array([0]), VOCABULARY)
    for seed in range(50):
        logits = random_logits(seed)
        assert sampler.pick(logits) == logits.argmax()


def test_huge_temperature_is_uniform() -> None:
    counts = drawn(random_logits(3), [0], 4000, temperature=1e300)
    assert counts.min() > 50


def test_forbidden_tokens_never_come() -> None:
    logits = np.full(VOCABULARY, -np.inf, np.float32)
    logits[[4, 11]] = [-500.0, -500.0]
    for params in ({}, {'temperature': 0.0}, {'top_p': 0.9}, {'min_p': 0.5}, {'top_k': 30},
                   {'repetition_penalty': 2.0}, {'temperature': 1e-6}):
        counts = drawn(logits, [4, 5], 200, **params)
        assert counts.sum() == counts[[4, 11]].sum() == 200


@pytest.mark.parametrize('bad', [np.nan, np.inf])
@pytest.mark.parametrize('temperature', [0.0, 1.0])
def test_logits_that_are_no_numbers(bad: float, temperature: float) -> None:
    logits = random_logits(4)
    logits[20] = bad
    sampler = Sampler(SamplingParams(temperature=temperature), np.array([0]), VOCABULARY)
    with assert_error(ErrorCode.STORE_CORRUPT):
        sampler.pick(logits)


WRONG = {
    'temperature': (-1.0, -1e-9, float('nan'), float('inf'), float('-inf'), '1', None, True),
    'top_k': (-1, 2.5, 40.0, float('nan'), float('inf'), '5', None),
    'top_p': (0, 0.0, -0.1, 1.0001, 2, float('nan'), float('inf'), None),
    'min_p': (-0.1, 1.1, float('nan'), float('inf'), [0.1]),
    'repetition_penalty': (0, 0.0, -2.0, float('nan'), float('inf'), 'x'),
    'seed': (-1, 2 ** 64, 1.5, float('nan'), None),
}


@pytest.mark.parametrize(('name', 'value'), [
    (name, value) for name, values in WRONG.items() for value in values])
def test_wrong_values(name: str, value: object) -> None:
    with assert_error(ErrorCode.INVALID_SAMPLING) as error:
        SamplingParams(**{name: value})
    assert str(error.value).startswith(f'{name} is {value!r}; it must be ')


@settings(max_examples=200)
@given(seed=st.integers(0, 2 ** 32 - 1), temperature=st.sampled_from([0.0, 1e-30, 0.7, 50.0]),
       top_k=st.integers(0, 5), top_p=st.sampled_from([0.1, 0.9, 1.0]),
       min_p=st.sampled_from([0.0, 0.5]), penalty=st.sampled_from([1.0, 0.5, 2.0]))
def test_only_allowed_tokens_are_picked(seed: int, temperature: float, top_k: int, top_p: float,
                                        min_p: float, penalty: float) -> None:
    random = np.random.default_rng(seed)
    logits = random.normal(0, 20, 40).astype(np.float32)
    allowed = random.random(40) < random.random()
    allowed[random.integers(40)] = True
    params = SamplingParams(temperature, top_k, top_p, min_p, penalty, seed)
    sampler = Sampler(params, np.arange(20), 40)
    before = logits.copy()
    for _ in range(5):
        assert allowed[sampler.pick(logits, allowed)]
    assert np.array_equal(logits, before)
    # The same as with no other tokens in the vocabulary.
    few = np.flatnonzero(allowed)
    small = Sampler(params, np.flatnonzero(few < 20), len(few))
    assert few[small.pick(logits[few])] == Sampler(params, np.arange(20), 40).pick(logits, allowed)
