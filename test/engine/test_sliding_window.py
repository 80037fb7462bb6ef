"""Layers whose tokens see few others keep no more of them, and no answer shows it."""

from pathlib import Path

from generation_cases import answer, opened, request, say
from greedy_reference import ReferenceModel
import pytest
from test_suspend import interrupted
from tiny_checkpoint import converted, write_checkpoint

from flash_llm_ros.engine import Engine

WINDOW, CHUNK, CONTEXT = 40, 16, 1024
SEGMENT = 256       # tokens, of which the cache of a layer has whole ones
LONG = 'The quick brown fox jumps over the lazy dog. ' * 12
SYSTEM = 'You are the voice of a robot with two wheels. ' * 3


@pytest.fixture(scope='module')
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp('windows')
    write_checkpoint(folder / 'checkpoint', model_type='mistral',
                     architectures=['MistralForCausalLM'], sliding_window=WINDOW)
    return converted(folder / 'checkpoint', folder / 'tiny.store', neurons='fp16').path


def sliding(store: Path, **options: object) -> Engine:
    return opened(store, context_length=CONTEXT, prefill_chunk=CHUNK, kv_cache='int16', **options)


def kept(engine: Engine, prompt: str, count: int) -> tuple[list[int], int]:
    """An answer with a system prompt that is kept, and how much of it was."""
    found = answer(engine, prompt, raw=False, system_prompt=SYSTEM, keep_system_prompt=True,
                   max_tokens=count)
    return found.tokens, found.stats.cached_tokens


def test_greedy_answers_are_those_of_transformers(store: Path) -> None:
    engine = sliding(store)
    rows = {row.name: row.bytes for row in engine.plan.rows}
    assert rows['KV cache'] == engine.model.attention.cache_bytes(SEGMENT)
    reference = ReferenceModel(store.parent / 'checkpoint')
    for prompt in ('Hello there', LONG, 'x', LONG[:290]):
        expected = reference.greedy(engine.tokenize(prompt), 60)
        assert answer(engine, prompt, max_tokens=60).tokens == expected
    engine.close()


@pytest.mark.parametrize('cancelled', ['Who', LONG])
@pytest.mark.parametrize('put_away', [False, True])
def test_a_turn_that_came_to_no_end(store: Path, tmp_path: Path, cancelled: str,
                                    put_away: bool) -> None:
    """Its tokens may have taken the place of those that the conversation goes on from."""
    engine = sliding(store, session_folder=tmp_path)
    say(engine, 'never interrupted', 'Hello')
    wanted = say(engine, 'never interrupted', 'And now?')
    begun = say(engine, 'one', 'Hello')
    turn = engine.start(request(cancelled, session_id='one', raw=False))
    pieces = iter(turn)
    for _ in range(len(turn.prompt_tokens) // CHUNK):
        next(pieces)
    if put_away:
        answer(engine, 'Others')
    found = say(engine, 'one', 'And now?')
    assert found.tokens == wanted.tokens
    rows = len(begun.prompt_tokens) + len(begun.tokens) - 1
    assert found.stats.cached_tokens == (0 if cancelled is LONG else rows)
    engine.close()


def test_a_system_prompt_behind_long_answers(store: Path, tmp_path: Path) -> None:
    engine = sliding(store, session_folder=tmp_path)
    cold = [kept(engine, prompt, count)[0] for prompt, count in (('x', 20), (LONG, 20))]
    again = [kept(engine, prompt, count) for prompt, count in (
        ('x', 400), ('x', 20), ('y', 5), (LONG, 20))]
    assert all(cached > len(SYSTEM) for _, cached in again)
    assert [again[1][0], again[3][0]] == cold
    other = sliding(store, session_folder=tmp_path / 'empty')
    assert kept(other, 'x', 20) == (cold[0], 0)
    other.close()
    engine.close()


def test_standing_back(store: Path, tmp_path: Path) -> None:
    engine = sliding(store, session_folder=tmp_path)
    asked = request(LONG, max_tokens=40)
    whole = answer(engine, LONG, max_tokens=40)
    found, _ = interrupted(engine, asked, 7)
    assert found.tokens == whole.tokens
    engine.close()


def test_drafts(store: Path) -> None:
    """A draft model that is at home in two texts goes back and forth in its own cache."""
    alone, engine = sliding(store), sliding(store, draft_store=store)
    for prompt in (LONG, LONG + 'And then?', LONG[:300] + 'And then?', LONG):
        found = answer(engine, prompt, max_tokens=40)
        assert found.tokens == answer(alone, prompt, max_tokens=40).tokens
    alone.close()
    engine.close()
