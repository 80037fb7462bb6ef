"""A layer is foreseen from the one before where that is faster; the text is the same."""

from pathlib import Path

from core_cases import needs_uring
from generation_cases import answer, opened, opened_tightly
import pytest

from flash_llm_ros.engine import Engine
from flash_llm_ros.engine.model.feed_forward.read_ahead import ReadAhead


class Clock:
    """A clock that goes only when it is told."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def run(read_ahead: ReadAhead, clock: Clock, tokens: int, off: float, on: float,
        slower: float = 0.0) -> list[bool]:
    """Whether each token read ahead; tokens take so long, and each `slower` longer than before."""
    found = []
    for number in range(tokens):
        found.append(read_ahead.begin())
        clock.now += (on if found[-1] else off) + slower * number
        read_ahead.end()
    return found


@pytest.mark.parametrize('slower', [0.0, 0.1, -0.05])
@pytest.mark.parametrize(('on', 'chosen'), [(0.5, True), (0.9, True), (0.98, False),
                                            (1.0, False), (1.5, False)])
def test_the_faster_one_is_chosen(on: float, chosen: bool, slower: float) -> None:
    """However tokens drift, as long as it is evenly."""
    clock = Clock()
    read_ahead = ReadAhead(clock)
    assert sum(run(read_ahead, clock, 8, 1.0, on, slower)) == 4
    assert run(read_ahead, clock, 120, 1.0, on) == [chosen] * 120


def test_it_is_tried_again() -> None:
    clock = Clock()
    read_ahead = ReadAhead(clock)
    first = run(read_ahead, clock, 128, 1.0, 0.5)
    second = run(read_ahead, clock, 128, 1.0, 2.0)
    third = run(read_ahead, clock, 128, 1.0, 0.5)
    assert [sum(found[8:]) for found in (first, second, third)] == [120, 0, 120]
    assert first[:8] == second[:8] == third[:8]


@pytest.mark.parametrize('paused', [0, 2, 5, 7])
def test_a_pause_of_the_machine_does_not_decide(paused: int) -> None:
    clock = Clock()
    read_ahead = ReadAhead(clock)
    for number in range(8):
        run(read_ahead, clock, 1, *((50.0, 50.0) if number == paused else (1.0, 0.8)))
    assert run(read_ahead, clock, 120, 1.0, 0.8) == [True] * 120


def test_a_token_that_fails_does_not_count() -> None:
    clock = Clock()
    read_ahead = ReadAhead(clock)
    read_ahead.begin()
    clock.now += 1000.0
    assert run(read_ahead, clock, 128, 1.0, 0.5)[8:] == [True] * 120


class Fixed:
    """Always, or never."""

    def __init__(self, on: bool) -> None:
        self._on = on

    def begin(self) -> bool:
        return self._on

    def end(self) -> None:
        pass


class Uses:
    """What every layer of every generated token used."""

    def __init__(self) -> None:
        self.active = []

    def feed_forward(self, layer, ffn_input, active) -> None:
        if active is not None:
            self.active.append((layer, active.tobytes()))


def watched(engine: Engine, on: bool) -> tuple[list[int], list, dict[str, int]]:
    """Tokens of an answer, the neurons that they used, and what the core counted."""
    engine.model.feed_forward.read_ahead = Fixed(on)
    engine.model.observer = uses = Uses()
    tokens = answer(engine, 'Where is the drone?', max_tokens=24).tokens
    return tokens, uses.active, engine.stats()


@pytest.mark.parametrize('options', [
    pytest.param({'reader': 'threads'}, id='threads'),
    pytest.param({'reader': 'io_uring', 'reads_in_flight': 2}, id='io_uring', marks=needs_uring),
])
def test_the_same_text_and_fewer_misses(planted_store: Path, options: dict[str, object]) -> None:
    found = {}
    for on in (False, True):
        engine = opened(planted_store, mode='gated', **options)       # which keeps what it has read
        found[on] = watched(engine, on)
        engine.close()
    off, on = found[False][2], found[True][2]
    assert found[True][:2] == found[False][:2]
    assert off['prefetched'] == 0
    assert 0 < on['prefetch_used'] <= on['prefetched'] < 2 * on['prefetch_used']
    # What was foreseen is no miss any more, and all else is one as before.
    assert on['misses'] + on['prefetch_used'] == off['misses']


def test_an_engine_decides_for_itself(planted_store: Path) -> None:
    """By trials, within one answer and over several; it goes on as if nothing had been tried."""
    engine = opened_tightly(planted_store, mode='gated')
    expected = [answer(engine, max_tokens=length).tokens for length in (60, 30)]
    engine.model.feed_forward.read_ahead = Fixed(False)
    assert [answer(engine, max_tokens=length).tokens for length in (60, 30)] == expected
    engine.close()
