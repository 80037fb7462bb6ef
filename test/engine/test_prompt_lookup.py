"""Guessing the next tokens from the text so far: the right guesses, and the same answers."""

from pathlib import Path

from generation_cases import PROMPTS, answer, opened, opened_tightly
from greedy_reference import ReferenceModel
from hypothesis import given
from hypothesis import strategies as st
import pytest

from flash_llm_ros.engine import SamplingParams
from flash_llm_ros.engine.request.prompt_lookup import PromptLookup

REPEATING = 'one two three four. one two three four. one two three four. one two'


def searched(tokens: list[int], length: int) -> list[int]:
    """What followed the latest earlier place with the same last three or two tokens."""
    for same in (3, 2):
        for end in range(len(tokens) - 1, same - 1, -1):
            if len(tokens) >= same and tokens[end - same:end] == tokens[-same:]:
                return tokens[end:end + length]
    return []


@given(st.lists(st.integers(0, 3), max_size=40), st.lists(st.integers(0, 3), max_size=10),
       st.integers(1, 6), st.integers(0, 8))
def test_guess_is_the_latest_earlier_place(prompt: list[int], answered: list[int], most: int,
                                           room: int) -> None:
    lookup = PromptLookup(prompt, most)
    for token in answered:
        lookup.add(token)
    for _ in range(3):                      # as long as it may be
        lookup.learn(most, most)
    assert lookup.guess(room) == searched(prompt + answered, min(most, room))


def test_length_follows_success() -> None:
    lookup = PromptLookup([1, 2, 3, 4, 5, 6, 7, 8, 9, 1, 2], 6)
    assert lookup.guess(9) == [3, 4]
    lookup.learn(2, 2)
    assert lookup.guess(9) == [3, 4, 5, 6]
    lookup.learn(4, 4)
    assert lookup.guess(9) == [3, 4, 5, 6, 7, 8]
    lookup.learn(0, 6)
    assert [lookup.guess(9), lookup.guess(9)] == [[], [3]]
    lookup.learn(0, 0)                      # nothing was guessed: nothing is learned
    assert lookup.guess(9) == [3]


def test_rests_grow_while_guesses_are_wrong() -> None:
    lookup = PromptLookup([1, 2, 3, 4, 5, 1, 2], 4)
    rests = []
    for _ in range(7):
        lookup.learn(0, 1)
        rests.append(next(passes for passes in range(99) if lookup.guess(9)))
    assert rests == [1, 2, 4, 8, 16, 16, 16]
    lookup.learn(1, 1)
    assert lookup.guess(9) == [3, 4]


@pytest.mark.parametrize('prompt', [*PROMPTS, REPEATING])
@pytest.mark.parametrize('lookup_tokens', [1, 4, 9])
def test_answers_are_those_of_transformers(fp16_store: Path, prompt: str,
                                           lookup_tokens: int) -> None:
    engine = opened(fp16_store, lookup_tokens=lookup_tokens, kv_cache='int16')
    reference = ReferenceModel(fp16_store.parent / 'checkpoint')
    expected = reference.greedy(engine.tokenize(prompt), 40)
    assert answer(engine, prompt, max_tokens=40).tokens == expected
    engine.close()


@pytest.mark.parametrize('sampling', [{}, {'temperature': 1.0, 'seed': 3, 'top_k': 2}])
def test_fewer_passes_give_the_same_answer(fp16_store: Path, sampling: dict[str, float]) -> None:
    found = {}
    for lookup_tokens in (0, 4):
        engine = opened_tightly(fp16_store, lookup_tokens=lookup_tokens)
        found[lookup_tokens] = answer(engine, REPEATING, max_tokens=60,
                                      sampling=SamplingParams(**sampling))
        engine.close()
    plain, guessed = found[0], found[4]
    assert guessed.tokens == plain.tokens
    assert plain.stats.drafted_tokens == 0
    assert 0 < guessed.stats.accepted_tokens <= guessed.stats.drafted_tokens
    assert guessed.stats.window_misses < 0.9 * plain.stats.window_misses


def test_the_end_of_the_context_is_kept(fp16_store: Path) -> None:
    for lookup_tokens in (0, 8):
        engine = opened(fp16_store, lookup_tokens=lookup_tokens, context_length=80)
        tokens = answer(engine, REPEATING, max_tokens=500).tokens
        assert len(engine.tokenize(REPEATING)) + len(tokens) <= 80
        engine.close()
