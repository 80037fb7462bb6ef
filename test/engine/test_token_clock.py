"""How a token's time is shared out over its layers, on a clock that the test sets."""

from hypothesis import given, settings
from hypothesis import strategies as st
import pytest

from flash_llm_ros.engine.config import EngineConfig
from flash_llm_ros.engine.token_clock import TokenClock, reads_end
from flash_llm_ros.store.errors import ErrorCode, FlashLlmError

SECONDS = st.floats(0, 10)


class Clock:
    """A clock that goes only when it is told."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


@settings(deadline=None)
@given(now=SECONDS, left=st.floats(-5, 10), computing=SECONDS, layers=st.integers(1, 80))
def test_layers_share_what_computing_leaves(now, left, computing, layers):
    found = reads_end(now, now + left, computing, layers)
    assert found >= now
    if left > computing:
        assert (found - now) * layers == pytest.approx(left - computing, abs=1e-9)
    else:
        assert found == pytest.approx(now)      # their difference may round to a little above 0


def run_token(clock, token_clock, compute, wanted, layers=4):
    """One token whose layers compute, then read as long as they want and may; returns its time."""
    token_clock.begin()
    begin = clock.now
    for layer in range(layers):
        clock.now += compute

        def read(end, layer=layer):
            clock.now = max(clock.now, min(clock.now + wanted[layer], end))
            return layer

        assert token_clock.layer(layer, read) == layer
    clock.now += compute        # the output head
    token_clock.end()
    return clock.now - begin


def test_tokens_end_in_time_once_computing_is_known():
    clock = Clock()
    token_clock = TokenClock(1.0, 4, clock)
    first = run_token(clock, token_clock, 0.05, [9] * 4)
    assert 1.0 < first <= 1.0 + 5 * 0.05 + 1e-9     # nothing is known yet of what comes last
    assert token_clock.missed == 1
    for wanted in ([9] * 4, [0, 0, 0, 9], [9, 0, 9, 0]):
        assert run_token(clock, token_clock, 0.05, wanted) <= 1.0 + 1e-9
    assert run_token(clock, token_clock, 0.05, [0, 0, 0, 9]) == pytest.approx(1.0)
    assert run_token(clock, token_clock, 0.05, [0.1] * 4) == pytest.approx(0.65)
    assert token_clock.missed <= 2     # rounding


def test_no_reads_where_computing_takes_all():
    clock = Clock()
    token_clock = TokenClock(0.1, 4, clock)
    for _ in range(2):
        took = run_token(clock, token_clock, 0.05, [9] * 4)
    assert took == pytest.approx(0.25)
    assert token_clock.missed == 2


@pytest.mark.parametrize(('values', 'sentence'), [
    ({'token_deadline_ms': 50.0}, r'token_deadline_ms is 50.0; it must be 0 in mode exact'),
    ({'token_deadline_ms': -1.0, 'mode': 'sparse'}, r'token_deadline_ms is -1.0; .* from 0 to'),
    ({'token_deadline_ms': float('nan'), 'mode': 'sparse'}, r'token_deadline_ms is nan'),
    ({'token_deadline_ms': '5', 'mode': 'sparse'}, r"token_deadline_ms is '5'"),
    ({'token_deadline_ms': 5.0, 'mode': 'sparse', 'down_reads': 'stream'},
     r"down_reads is 'stream'; it must be auto or scattered where"),
    ({'threads': 257}, r'threads is 257; it must be at most 256'),
])
def test_what_cannot_be_asked_for(tmp_path, values, sentence):
    with pytest.raises(FlashLlmError, match=sentence) as error:
        EngineConfig(tmp_path, 10**8, **values)
    assert error.value.code == ErrorCode.INVALID_PARAMETER
