"""A generation that is set aside goes on with the bytes it would have had."""

from pathlib import Path

from generation_cases import CORES, PROMPTS, answer, opened, request
import pytest

from flash_llm_ros.engine import SamplingParams
from flash_llm_ros.store.errors import ErrorCode, FlashLlmError

SAMPLED = SamplingParams(temperature=0.8, top_k=40, repetition_penalty=1.1, seed=7)
LONG = 'The robot drives to the dock and the robot drives to the door. ' * 3
CASES = {
    'greedy': {'prompt': PROMPTS[0]},
    'sampled': {'prompt': PROMPTS[1], 'sampling': SAMPLED},
    'guessed': {'prompt': LONG, 'max_tokens': 60},
    'stopped': {'prompt': PROMPTS[0], 'stop': ('never said', 'nor this')},
}


def run_with_interruptions(engine, places, fields):
    """The pieces, with another generation run to its end behind each piece in `places`."""
    generation = engine.start(request(**fields))
    pieces = []
    for number, piece in enumerate(generation):
        pieces.append(piece)
        if number in places:
            engine.set_aside(generation)
            answer(engine, PROMPTS[3] + ' something else', sampling=SAMPLED, max_tokens=7)
            engine.bring_back(generation)
    return generation, pieces


@pytest.mark.parametrize('core', CORES)
@pytest.mark.parametrize('mode', ['exact', 'sparse'])
def test_the_text_is_the_same_wherever_it_is_set_aside(int8_store, core, mode):
    engine = opened(int8_store, core, mode=mode, prefill_chunk=16)
    for name, fields in CASES.items():
        generation = engine.start(request(**fields))
        pieces = list(generation)
        most = len(pieces) - 1
        for places in ({0}, {1}, {most // 2}, {most - 1}, set(range(most))):
            again, same = run_with_interruptions(engine, places, fields)
            assert same == pieces, (name, places)
            assert again.tokens == generation.tokens
            assert again.finish_reason == generation.finish_reason
    engine.close()


def test_guessed_tokens_are_interrupted_too(int8_store):
    """Between two tokens of one pass the logits of the second are still to come."""
    engine = opened(int8_store)
    generation = answer(engine, LONG, max_tokens=120)
    assert generation.stats.right_guesses > 3      # else the case above shows nothing
    engine.close()


def test_cost_leaves_out_what_others_did(int8_store):
    engine = opened(int8_store)
    fields = {'prompt': PROMPTS[1], 'max_tokens': 20}
    answer(engine, **fields)                        # fills the window: the same hits from now on
    alone = answer(engine, **fields).stats
    with_others, _ = run_with_interruptions(engine, {3, 4, 9}, fields)
    for name in ('prompt_tokens', 'generated_tokens'):
        assert getattr(with_others.stats, name) == getattr(alone, name)
    uses = [cost.window_hits + cost.window_misses for cost in (alone, with_others.stats)]
    assert uses[0] == uses[1]
    engine.close()


def test_one_that_is_given_up_while_aside_leaves_no_file(int8_store, tmp_path):
    engine = opened(int8_store, scratch_folder=tmp_path)
    files = lambda: sum(1 for link in Path('/proc/self/fd').iterdir()   # noqa: E731
                        if str(tmp_path) in str(link.resolve(strict=False)))
    generation = engine.start(request())
    pieces = iter(generation)
    next(pieces)
    engine.set_aside(generation)
    cost = generation.stats.flash_bytes, generation.stats.window_hits
    assert files() == 1 and not list(tmp_path.iterdir())
    answer(engine)
    pieces.close()
    generation.forget()
    assert files() == 0
    assert (generation.stats.flash_bytes, generation.stats.window_hits) == cost
    engine.close()


def test_where_nothing_can_be_written_it_goes_on(int8_store, tmp_path):
    engine = opened(int8_store, scratch_folder=tmp_path / 'missing')
    whole = answer(engine).text
    generation = engine.start(request())
    pieces = iter(generation)
    text = next(pieces)
    with pytest.raises(FlashLlmError, match='scratch_folder') as refusal:
        engine.set_aside(generation)
    assert refusal.value.code is ErrorCode.INVALID_PARAMETER
    assert text + ''.join(pieces) == whole
    engine.close()


def test_a_damaged_file_is_noticed(int8_store, tmp_path, monkeypatch):
    engine = opened(int8_store, scratch_folder=tmp_path)
    generation = engine.start(request())
    next(iter(generation))
    engine.set_aside(generation)
    link = next(link for link in Path('/proc/self/fd').iterdir()
                if str(tmp_path) in str(link.resolve(strict=False)))
    with link.open('r+b') as file:
        file.seek(1000)
        byte = file.read(1)[0]
        file.seek(1000)
        file.write(bytes([byte ^ 1]))
    with pytest.raises(FlashLlmError) as failure:
        engine.bring_back(generation)
    assert failure.value.code is ErrorCode.CHECKSUM_MISMATCH
    assert answer(engine).text      # the engine itself is well
    engine.close()
