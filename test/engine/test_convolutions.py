"""Layers with a convolution in the place of attention: one can go back, however far.

Against transformers, which computes every answer from its first token on.
"""

from pathlib import Path

from expert_checkpoints import EXPERT_FAMILIES
from family_checkpoints import VARIANTS, reference_of
from generation_cases import TURNS, answer, opened, opened_tightly, request, say
import pytest
from test_suspend import REPEATING, interrupted
from tiny_checkpoint import converted
from transformers import PreTrainedModel

from bench.quality.reference_model import reference_choices
from flash_llm_ros.engine import Generation, SamplingParams
from flash_llm_ros.engine.model.convolution_cache import STRIDE

SETTINGS = {'prefill_chunk': 16, 'kv_cache': 'int16'}
SYSTEM = {'system_prompt': 'You are the voice of a robot. ' * 2, 'keep_system_prompt': True,
          'raw': False}


@pytest.fixture(scope='module', params=['lfm2', 'lfm2_moe'])
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    write = (VARIANTS | EXPERT_FAMILIES)[request.param]
    return write(tmp_path_factory.mktemp(request.param) / 'checkpoint')


@pytest.fixture(scope='module')
def reference(checkpoint: Path) -> PreTrainedModel:
    return reference_of(checkpoint)


@pytest.fixture(scope='module')
def store(checkpoint: Path) -> Path:
    return converted(checkpoint, checkpoint.with_name('store'), neurons='fp16').path


def assert_greedy(reference: PreTrainedModel, *answers: Generation) -> None:
    for found in answers:
        assert found.tokens == reference_choices(reference, found.prompt_tokens, found.tokens)


def test_a_conversation_beside_others_and_behind_a_turn_that_was_given_up(
        store: Path, reference: PreTrainedModel, tmp_path: Path) -> None:
    engine = opened(store, session_folder=tmp_path, **SETTINGS)
    for turn in ('Who are you, and what are you here for? ' * 2, *TURNS):
        given_up = engine.start(request('Never mind. ' * 4, session_id='a', raw=False))
        for _, _ in zip(range(8), given_up, strict=False):
            pass
        found = say(engine, 'a', turn)
        # The turn that was given up was longer than the ring.
        assert found.stats.cached_tokens % STRIDE == 0
        assert (found.stats.cached_tokens > 0) == (turn in TURNS)
        assert_greedy(reference, given_up, found, answer(engine, 'something else'),
                      say(engine, 'a', 'So?', max_tokens=3))
    engine.close()


def test_a_kept_prompt_behind_other_prompts_and_from_its_file(
        store: Path, reference: PreTrainedModel, tmp_path: Path) -> None:
    for times in (3, 1):
        engine = opened(store, session_folder=tmp_path, **SETTINGS)
        answers = [answer(engine, prompt, **SYSTEM) for prompt in TURNS[:times]]
        engine.close()
        assert_greedy(reference, *answers)
        assert answers[-1].stats.cached_tokens > 60


def test_guesses_that_are_wrong_and_requests_between(
        store: Path, reference: PreTrainedModel, tmp_path: Path) -> None:
    engine = opened_tightly(store, session_folder=tmp_path, **SETTINGS)
    guesses = engine.model.spec.feed_forward.experts is None    # which have none
    plain = opened(store, **SETTINGS, lookup_tokens=0)
    for sampling in (SamplingParams(), SamplingParams(temperature=4.0, seed=3)):
        asked = {'max_tokens': 60, 'sampling': sampling}
        found, pieces = interrupted(engine, request(REPEATING, **asked), every=2)
        assert pieces > 5 and (found.stats.drafted_tokens > 0) == guesses
        assert found.tokens == answer(plain, REPEATING, **asked).tokens
        if sampling.temperature == 0:
            assert_greedy(reference, found)
        else:
            assert (found.stats.drafted_tokens > found.stats.accepted_tokens) == guesses
    engine.close()
    plain.close()
