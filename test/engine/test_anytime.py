"""Tokens with a deadline, in both layouts: late neurons are left out, counted and told."""

from pathlib import Path

from generation_cases import CORES, answer, opened, opened_tightly
from planted_checkpoint import PLANTED_RANK, write_planted_checkpoint
import pytest
from tiny_checkpoint import write_checkpoint

from flash_llm_ros.convert.conversion import ConversionOptions, convert
from flash_llm_ros.store.flash_store import FlashStore

TOKENS = 20
NO_TIME, MUCH_TIME = 1e-3, 6e5      # ms


def silent(what: str, done: int, total: int) -> None:
    pass


@pytest.fixture(scope='module', params=['split', 'bundled'])
def store(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp(request.param)
    if request.param == 'split':
        checkpoint = write_checkpoint(folder / 'checkpoint', intermediate_size=2048)
        options = ConversionOptions(most_tokens=256)
    else:
        checkpoint = write_planted_checkpoint(folder / 'checkpoint')
        options = ConversionOptions(neurons='fp16', rank=2 * PLANTED_RANK)
    path = folder / 'model.store'
    convert(checkpoint, path, options, silent)
    assert FlashStore.open(path).manifest.layout == request.param
    return path


@pytest.mark.parametrize('core', CORES)
def test_with_much_time_nothing_is_left_out(store: Path, core: str) -> None:
    found = []
    for deadline in (0.0, MUCH_TIME):
        engine = opened_tightly(store, core, mode='sparse', token_deadline_ms=deadline)
        generation = answer(engine, max_tokens=TOKENS)
        stats = generation.stats
        assert (stats.neurons_left_out, stats.deadlines_missed) == (0, 0)
        found.append((generation.tokens, stats.active_fraction))
        engine.close()
    assert found[0] == found[1]


@pytest.mark.parametrize('core', CORES)
def test_without_time_only_what_is_here_is_used(store: Path, core: str) -> None:
    engine = opened_tightly(store, core, mode='sparse', token_deadline_ms=NO_TIME, threads=2)
    before = engine.stats()
    generation = answer(engine, max_tokens=TOKENS)
    stats, after = generation.stats, engine.stats()
    assert len(generation.tokens) == TOKENS
    # The NumPy core waits when it prefetches, which is what the split layout does.
    waits = core == 'numpy' and engine.model.feed_forward.streamed
    assert stats.neurons_left_out == after['left_out'] - before['left_out']
    assert stats.neurons_left_out > 0 or waits
    assert stats.deadlines_missed == TOKENS - 1         # the first one comes with the prompt
    # Everything once: what is used of each token, and what its deadline has left out.
    used = after['active_neurons'] - before['active_neurons']
    total = after['total_neurons'] - before['total_neurons']
    assert 0 < used + stats.neurons_left_out <= total
    engine.close()


def test_a_window_for_all_needs_no_time(store: Path) -> None:
    """Once everything has been read, nothing is late, however little time there is."""
    reading = opened(store, mode='sparse', sparsity=0.0)
    wanted = answer(reading, max_tokens=TOKENS).tokens
    reading.close()
    engine = opened(store, mode='sparse', sparsity=0.0, token_deadline_ms=MUCH_TIME)
    assert answer(engine, max_tokens=TOKENS).tokens == wanted
    engine.model.clock.seconds = NO_TIME / 1000
    again = answer(engine, max_tokens=TOKENS)
    assert again.tokens == wanted
    assert again.stats.neurons_left_out == 0
    assert again.stats.deadlines_missed == TOKENS - 1
    engine.close()
