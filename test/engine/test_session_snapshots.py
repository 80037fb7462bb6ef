"""Conversations that lie on flash while others run: the same bytes, and faults that cost time."""

from pathlib import Path
import resource

from generation_cases import KINDS, TURNS, answer, opened, say, talk
import pytest

from bench.faults.damage import flip_bit
from flash_llm_ros.engine import Engine, EngineConfig, SamplingParams


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('options', [
    {}, {'sampling': SamplingParams(temperature=0.9, seed=4, repetition_penalty=1.2)}])
def test_turns_between_others_give_the_same_bytes(stores: dict[str, Path], tmp_path: Path,
                                                  kind: str, options: dict) -> None:
    """In the KV cache or on flash, in this process or another: it makes no difference."""
    engine = opened(stores[kind], mode=KINDS[kind], session_folder=tmp_path / 'one', max_sessions=3)
    alone = talk(engine, 'alone', **options)
    mixed = {'a': [], 'b': []}
    for turn in TURNS:
        for name, found in mixed.items():
            found.append(say(engine, name, turn, **options).tokens)
            answer(engine, 'something else', max_tokens=3)
    assert mixed == {'a': alone, 'b': alone}
    assert not list((tmp_path / 'one').iterdir())       # files without names
    engine.close()
    engine = opened(stores[kind], mode=KINDS[kind], session_folder=tmp_path / 'two')
    assert talk(engine, 'a', **options) == alone
    engine.close()


def lines_of(int8_store: Path, folder: Path, **options: object) -> tuple[Engine, list[str]]:
    lines: list[str] = []
    return Engine.open(EngineConfig(int8_store, 60_000_000, session_folder=folder, **options),
                       log=lines.append), lines


def test_a_full_disk_costs_time_only(int8_store: Path, tmp_path: Path) -> None:
    """The kernel refuses to let the file grow, as it does where the disk is full."""
    engine, lines = lines_of(int8_store, tmp_path)
    expected = talk(engine, 'whole')
    say(engine, 'a', TURNS[0])
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, limits[1]))
    try:
        answer(engine, 'something else')
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert 'cannot be written' in lines[-1] and str(tmp_path) in lines[-1]
    found = say(engine, 'a', TURNS[1])
    assert (found.tokens, found.stats.cached_tokens) == (expected[1], 0)
    engine.close()


@pytest.mark.parametrize('damage', ['flip', 'cut'])
def test_a_damaged_snapshot_costs_time_only(int8_store: Path, tmp_path: Path, damage: str) -> None:
    engine, lines = lines_of(int8_store, tmp_path)
    expected = talk(engine, 'whole')
    say(engine, 'a', TURNS[0])
    answer(engine, 'something else')
    file = engine._runs.sessions._by_name['a'].snapshot._file
    if damage == 'cut':
        file.truncate(1000)
    else:
        flip_bit(file, 1000, bit=4)
    found = say(engine, 'a', TURNS[1])
    assert (found.tokens, found.stats.cached_tokens) == (expected[1], 0)
    assert 'computed anew' in lines[-1]
    engine.close()
