"""A generation that stands back for others goes on as if it had never been interrupted."""

from pathlib import Path

from generation_cases import KINDS, PROMPTS, answer, opened, opened_tightly, request
import pytest
from refusals import assert_error

from bench.faults.damage import flip_bit
from flash_llm_ros.engine import (
    Engine,
    FinishReason,
    GenerationCost,
    GenerationRequest,
    SamplingParams,
)
from flash_llm_ros.store.errors import ErrorCode

REPEATING = 'abcabcabcabc' * 6      # guessed tokens are under way at most pieces


def interrupted(engine: Engine, asked: GenerationRequest, every: int) -> tuple:
    """An answer, and its cost, with another request run at every so many of its pieces."""
    generation = engine.start(asked)
    pieces, text = iter(generation), ''
    count = 0
    while (piece := next(pieces, None)) is not None:
        text += piece
        count += 1
        if count % every == 0 and generation.finish_reason is FinishReason.RUNNING:
            suspended = engine.suspend()
            answer(engine, PROMPTS[count % 2], max_tokens=3,
                   sampling=SamplingParams(temperature=1.0, seed=count))
            engine.resume(suspended)
    assert text == generation.text
    return generation, count


def groups_used(cost: GenerationCost) -> int:
    return cost.window_hits + cost.window_misses + cost.window_foreseen


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('prompt', [PROMPTS[1], REPEATING])
@pytest.mark.parametrize('sampling', [
    SamplingParams(), SamplingParams(temperature=0.8, seed=5, repetition_penalty=1.1)])
def test_the_same_bytes(stores: dict[str, Path], tmp_path: Path, kind: str, prompt: str,
                        sampling: SamplingParams) -> None:
    open_engine = opened_tightly if prompt == REPEATING else opened     # guesses take reading
    engine = open_engine(stores[kind], mode=KINDS[kind], prefill_chunk=16, session_folder=tmp_path)
    asked = request(prompt, sampling=sampling)
    whole = engine.start(asked)
    assert ''.join(whole) == whole.text
    for every in (1, 3):
        found, pieces = interrupted(engine, asked, every)
        assert pieces > 5
        assert (found.tokens, found.text) == (whole.tokens, whole.text)
        assert found.finish_reason is whole.finish_reason
        # Groups used are the same whatever the window holds: others' are not counted.
        assert groups_used(found.stats) == groups_used(whole.stats)
        assert found.stats.accepted_tokens == whole.stats.accepted_tokens
        assert found.stats.active_fraction == whole.stats.active_fraction
    if kind == 'exact' and prompt == REPEATING and sampling.temperature == 0:
        assert whole.stats.drafted_tokens > 0
    engine.close()
    assert not list(tmp_path.iterdir())


def test_before_its_first_piece_and_several_deep(int8_store: Path, tmp_path: Path) -> None:
    engine = opened(int8_store, session_folder=tmp_path)
    prompts = [*PROMPTS[:3], REPEATING]
    alone = [answer(engine, prompt).text for prompt in prompts]
    waiting, texts = [], []
    for prompt in prompts:
        generation = engine.start(request(prompt))
        pieces = iter(generation)
        for _ in range(len(waiting)):       # the first one has not begun
            next(pieces)
        waiting.append((engine.suspend(), generation, pieces))
    for suspended, generation, pieces in reversed(waiting):
        engine.resume(suspended)
        for _ in pieces:
            pass
        texts.insert(0, generation.text)
    assert texts == alone
    engine.close()


def test_a_state_that_is_lost_is_an_error(int8_store: Path, tmp_path: Path) -> None:
    engine = opened(int8_store, session_folder=tmp_path)
    expected = answer(engine).text
    generation = engine.start(request())
    pieces = iter(generation)
    next(pieces)
    suspended = engine.suspend()
    flip_bit(suspended.snapshot._file, 1000)
    with assert_error(ErrorCode.CHECKSUM_MISMATCH):
        engine.resume(suspended)
    assert answer(engine).text == expected
    engine.close()


def test_without_a_folder_it_goes_on(int8_store: Path, tmp_path: Path) -> None:
    """What cannot be put aside is not given up."""
    (tmp_path / 'file').write_text('')
    engine = opened(int8_store, session_folder=tmp_path / 'file')
    expected = answer(engine).text
    generation = engine.start(request())
    pieces = iter(generation)
    next(pieces)
    with assert_error(ErrorCode.READ_FAILED, 'file'):
        engine.suspend()
    for _ in pieces:
        pass
    assert generation.text == expected
    with pytest.raises(RuntimeError, match='nothing runs'):
        engine.close()
        engine.suspend()
