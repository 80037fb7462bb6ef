"""The duty cycle: how much rest is owed, and that nobody who is wanted has to wait for it."""

import time

from hypothesis import given
from hypothesis import strategies as st
import pytest
from scripted_engine import SETTINGS, TIMEOUT, ScriptedEngine, send

from flash_llm_ros.node.work.pace import Pace
from flash_llm_ros.node.work.worker import Worker


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def work(pace, clock, seconds, duty_cycle):
    pace.work(duty_cycle)
    clock.now += seconds
    pace.rest(duty_cycle)


@given(pieces=st.lists(st.floats(0.001, 30), min_size=1, max_size=20),
       duty_cycle=st.floats(0.05, 1.0))
def test_the_share_of_work_is_the_duty_cycle(pieces, duty_cycle):
    clock = Clock()
    pace, begin = Pace(clock), clock.now
    for seconds in pieces:
        work(pace, clock, seconds, duty_cycle)
        clock.now += pace.owed(duty_cycle)
        assert pace.owed(duty_cycle) == pytest.approx(0, abs=1e-6)
    assert sum(pieces) / (clock.now - begin) == pytest.approx(duty_cycle)


def test_idle_time_is_rest():
    clock = Clock()
    pace = Pace(clock)
    work(pace, clock, 1.0, 0.25)
    assert pace.owed(0.25) == pytest.approx(3.0)
    clock.now += 1.0
    assert pace.owed(0.25) == pytest.approx(2.0)
    clock.now += 50.0
    work(pace, clock, 1.0, 0.25)        # idle time is not saved up for later
    assert pace.owed(0.25) == pytest.approx(3.0)


def test_a_new_duty_cycle_counts_for_what_is_owed():
    clock = Clock()
    pace = Pace(clock)
    work(pace, clock, 10.0, 0.1)
    assert pace.owed(0.1) == pytest.approx(90.0)
    assert pace.owed(0.5) == pytest.approx(10.0)
    assert pace.owed(1.0) == 0
    assert pace.owed(0.1) == 0          # it was forgiven


def test_what_was_owed_before_may_stay_owed():
    clock = Clock()
    pace = Pace(clock)
    work(pace, clock, 10.0, 0.5)
    before = pace.unpaid
    assert pace.owed(0.5, before) == 0
    work(pace, clock, 2.0, 0.5)
    assert pace.owed(0.5, before) == pytest.approx(2.0)
    assert pace.owed(0.5) == pytest.approx(12.0)


@pytest.fixture
def settings():
    return {**SETTINGS, 'compute.duty_cycle': 0.05}


@pytest.fixture
def worker(settings):
    worker = Worker(ScriptedEngine(), settings, lambda error: None)
    worker.activate()
    yield worker
    worker.close('over')


def work_for_an_hour(worker):
    """At the gate: so much rest is owed then that no test would live to see the end of it."""
    assert worker.engine.at_gate.wait(TIMEOUT)
    worker._pace._work += 3600.0
    worker.engine.gate.set()
    until(lambda: '<gate>' in worker.engine.said)


def until(condition):
    limit = time.monotonic() + TIMEOUT
    while not condition() and time.monotonic() < limit:
        time.sleep(0.005)
    assert condition()


def test_cancel_and_a_higher_priority_do_not_wait_for_the_rest(worker):
    low, low_listener = send(worker, 'a <gate> b c')
    work_for_an_hour(worker)
    _, high = send(worker, 'x y', 200)
    assert high.outcome().text == 'xy'                  # which owes little of its own
    assert worker.engine.said == ['a', '<gate>', 'x', 'y']
    low.cancel('not wanted')
    assert low_listener.outcome().text == 'a<gate>'
    until(lambda: worker.phase == '')                   # the engine does not rest for a dead one


def test_raising_the_duty_cycle_ends_the_rest(worker, settings):
    _, listener = send(worker, 'a <gate> b')
    work_for_an_hour(worker)
    assert not listener.ended.is_set()
    settings['compute.duty_cycle'] = 1.0
    assert listener.outcome().text == 'a<gate>b'


def test_who_comes_next_rests_for_who_was_before(worker):
    _, first = send(worker, '<gate>')   # the end of its answer does not wait
    work_for_an_hour(worker)
    assert first.outcome().text == '<gate>'
    request, second = send(worker, 'b')
    time.sleep(0.2)
    assert worker.phase == 'prefill' and worker.engine.served == ['<gate>']
    request.cancel('not wanted')
    assert second.outcome().text == ''
