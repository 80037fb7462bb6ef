"""Who has the engine when several want it: priorities and `when_busy`, on a scripted engine."""

import threading

import pytest
from refusals import assert_error
from scripted_engine import SETTINGS, TIMEOUT, ScriptedEngine, send

from flash_llm_ros.engine import FinishReason
from flash_llm_ros.node.work.scheduler import MOST_SET_ASIDE
from flash_llm_ros.node.work.worker import Worker
from flash_llm_ros.store.errors import ErrorCode, FlashLlmError, ReadFailedError


@pytest.fixture
def engine():
    return ScriptedEngine()


@pytest.fixture
def settings():
    return dict(SETTINGS)


@pytest.fixture
def warnings():
    return []


@pytest.fixture
def bugs():
    return []


@pytest.fixture
def worker(engine, settings, warnings, bugs):
    worker = Worker(engine, settings, bugs.append, warnings.append)
    worker.activate()
    yield worker
    closing = threading.Thread(target=worker.close, args=('the test is over',))
    closing.start()
    while closing.is_alive():
        engine.gate.set()
        closing.join(0.01)
    assert engine.closed and [type(bug) for bug in bugs] == [OSError] * len(bugs)


def at_gate(worker, engine, prompt, priority=100, **options):
    """Send a request and wait until the engine stands at its gate."""
    sent = send(worker, prompt, priority, **options)
    assert engine.at_gate.wait(TIMEOUT)
    engine.at_gate.clear()
    return sent


def test_the_highest_goes_first_and_equals_in_order(worker, engine, settings):
    settings['requests.queue_size'] = 4
    at_gate(worker, engine, '<gate>', 255)
    listeners = [send(worker, prompt, priority)[1]
                 for prompt, priority in (('low', 1), ('one', 100), ('two', 100), ('high', 200))]
    engine.gate.set()
    for listener in listeners:
        listener.outcome()
        listener.check()
    assert engine.said == ['<gate>', 'high', 'one', 'two', 'low']


def test_a_higher_priority_goes_first_at_the_next_token(worker, engine):
    _, low = at_gate(worker, engine, 'a <gate> b c')
    _, high = send(worker, 'x y', 101)
    engine.gate.set()
    assert high.outcome().text == 'xy'
    assert low.outcome().text == 'a<gate>bc'
    assert low.outcome().finish_reason == FinishReason.STOP
    # The token that was being computed, and not one more.
    assert engine.said == ['a', '<gate>', 'x', 'y', 'b', 'c']
    assert (low.outcome().preemptions, high.outcome().preemptions) == (1, 0)
    for listener in (low, high):
        listener.check()


def test_an_equal_priority_waits(worker, engine):
    _, first = at_gate(worker, engine, 'a <gate> b')
    _, second = send(worker, 'x')
    engine.gate.set()
    second.outcome()
    assert engine.said == ['a', '<gate>', 'b', 'x'] and first.outcome().preemptions == 0


def test_preempting_needs_no_place_in_the_queue(worker, engine, settings):
    settings['requests.queue_size'] = 0
    _, low = at_gate(worker, engine, '<gate> a')
    with pytest.raises(FlashLlmError, match='queue_size'):
        send(worker, 'equal')
    _, high = send(worker, 'x', 200)
    with pytest.raises(FlashLlmError, match='queue_size'):
        send(worker, 'equal to the one that waits', 200)
    engine.gate.set()
    assert high.outcome().text == 'x' and low.outcome().text == '<gate>a'


def test_nested_as_deep_as_is_allowed(worker, engine, settings):
    settings['requests.queue_size'] = 1
    listeners = [at_gate(worker, engine, 'a0 <gate> b0', 10)[1]]
    for depth in range(1, MOST_SET_ASIDE + 1):
        listeners.append(send(worker, f'a{depth} <gate> b{depth}', 10 + depth)[1])
        engine.gate.set()       # of the one before, which stands back behind it
        assert engine.at_gate.wait(TIMEOUT)
        engine.at_gate.clear()
    assert len(engine.suspended) == MOST_SET_ASIDE
    _, last = send(worker, 'x', 255)        # waits in the queue as if it were no higher
    with pytest.raises(FlashLlmError, match='queue_size'):
        send(worker, 'y', 255)
    engine.gate.set()
    assert last.outcome().text == 'x'
    for depth, listener in enumerate(listeners):
        assert listener.outcome().text == f'a{depth}<gate>b{depth}'
        listener.check()
    assert engine.said[-6:] == ['b4', 'x', 'b3', 'b2', 'b1', 'b0']


def test_one_set_aside_ends_by_cancel_and_by_deadline(worker, engine):
    low, listener = at_gate(worker, engine, 'a <gate> b', 1)
    late, by_deadline = send(worker, 'l <gate> m', 2, deadline=60.0)
    engine.gate.set()
    assert engine.at_gate.wait(TIMEOUT)
    engine.at_gate.clear()
    _, high = send(worker, 'x <gate> y z', 3)
    engine.gate.set()
    assert engine.at_gate.wait(TIMEOUT)     # both are set aside
    assert len(engine.suspended) == 2
    low.cancel('not wanted')
    assert (listener.outcome().text, listener.outcome().error.code) == (
        'a<gate>', ErrorCode.CANCELLED)
    late._expire()
    assert by_deadline.outcome().finish_reason == FinishReason.DEADLINE
    assert (by_deadline.outcome().text, by_deadline.outcome().error) == ('l<gate>', None)
    engine.gate.set()
    assert high.outcome().text == 'x<gate>yz'
    assert send(worker, 'after')[1].outcome().text == 'after'
    assert not engine.suspended
    assert not {'b', 'm'} & set(engine.said)


def test_a_clearing_up_that_fails_is_nobody_else_s_failure(worker, engine, bugs):
    low, _ = at_gate(worker, engine, 'a <gate> b', 1)
    _, high = send(worker, 'x <gate> y z', 2)
    engine.gate.set()
    assert engine.at_gate.wait(TIMEOUT)
    engine.discard_error = OSError('planted')
    low.cancel('not wanted')
    engine.gate.set()
    assert high.outcome().error is None and high.outcome().text == 'x<gate>yz'
    assert send(worker, 'after')[1].outcome().text == 'after'
    assert [str(bug) for bug in bugs] == ['planted']


def test_deactivation_ends_what_is_set_aside(worker, engine):
    _, low = at_gate(worker, engine, 'a <gate> b', 1)
    _, high = send(worker, 'x <gate> y', 2)
    engine.gate.set()
    assert engine.at_gate.wait(TIMEOUT)
    threading.Timer(0.2, engine.gate.set).start()
    worker.deactivate('stopped')
    for listener in (low, high):
        assert listener.outcome().error.code == ErrorCode.CANCELLED
        listener.check()
    assert not engine.suspended and worker.queue_length == 0


def test_where_it_cannot_be_set_aside_it_goes_on(worker, engine, warnings):
    engine.suspend_error = FlashLlmError(ErrorCode.READ_FAILED, 'The disk is full.')
    _, low = at_gate(worker, engine, 'a <gate> b c')
    _, high = send(worker, 'x', 200)
    engine.gate.set()
    assert low.outcome().text == 'a<gate>bc' and high.outcome().text == 'x'
    assert engine.said == ['a', '<gate>', 'b', 'c', 'x']
    assert len(warnings) == 1 and 'The disk is full.' in warnings[0]
    assert low.outcome().preemptions == 0


def test_where_it_cannot_be_brought_back_only_it_fails(worker, engine):
    engine.resume_error = ReadFailedError('The file is gone.')
    _, low = at_gate(worker, engine, 'a <gate> b')
    _, high = send(worker, 'x', 200)
    engine.gate.set()
    assert high.outcome().text == 'x'
    assert low.outcome().finish_reason == FinishReason.ERROR
    assert low.outcome().error.code == ErrorCode.READ_FAILED
    assert low.outcome().text == 'a<gate>'
    engine.resume_error = None
    assert send(worker, 'after')[1].outcome().text == 'after'


def test_reject(worker, engine, settings):
    settings['requests.when_busy'] = 'reject'
    _, running = at_gate(worker, engine, 'a <gate> b')
    with assert_error(ErrorCode.QUEUE_FULL, 'reject'):
        send(worker, 'x')
    with pytest.raises(FlashLlmError, match='reject'):
        send(worker, 'x', 1)
    _, urgent = send(worker, 'y', 200)      # a higher priority is not for `when_busy` to decide
    engine.gate.set()
    assert urgent.outcome().text == 'y' and running.outcome().text == 'a<gate>b'


def test_keep_last(worker, engine, settings):
    settings['requests.when_busy'] = 'keep_last'
    _, running = at_gate(worker, engine, 'a <gate> b', 150)
    waiting = [send(worker, f'w{number}')[1] for number in range(5)]
    for listener in waiting[:-1]:
        assert listener.outcome().finish_reason == FinishReason.CANCELLED
        assert listener.outcome().error.code == ErrorCode.REPLACED
        assert listener.events == ['chunk', 'done']
    with assert_error(ErrorCode.QUEUE_FULL, 'higher priority'):
        send(worker, 'lower than the one that waits', 1)
    engine.gate.set()
    assert waiting[-1].outcome().text == 'w4' and running.outcome().text == 'a<gate>b'


def test_interrupt(worker, engine, settings):
    settings['requests.when_busy'] = 'interrupt'
    _, running = at_gate(worker, engine, 'a <gate> b')
    _, lower = send(worker, 'lower', 1)
    _, first = send(worker, 'first')
    _, second = send(worker, 'second', 120)
    # Both ended at once: the first of the two had not even begun.
    assert (running.outcome().text, running.outcome().finish_reason) == (
        'a', FinishReason.CANCELLED)
    assert running.outcome().error.code == ErrorCode.REPLACED
    assert first.outcome().error.code == ErrorCode.REPLACED
    engine.gate.set()
    assert second.outcome().text == 'second' and lower.outcome().text == 'lower'
    assert engine.said == ['a', 'second', 'lower']
    for listener in (running, lower, first, second):
        listener.check()


def test_interrupt_leaves_a_higher_priority_alone(worker, engine, settings):
    settings['requests.when_busy'] = 'interrupt'
    settings['requests.queue_size'] = 1
    _, running = at_gate(worker, engine, 'a <gate> b', 200)
    _, waiting = send(worker, 'x')
    with pytest.raises(FlashLlmError, match='queue_size'):
        send(worker, 'y')
    engine.gate.set()
    assert running.outcome().text == 'a<gate>b' and waiting.outcome().text == 'x'


def test_after_a_cancel_the_engine_counts_as_free(worker, engine, settings):
    settings['requests.when_busy'] = 'reject'
    request, _ = at_gate(worker, engine, 'a <gate> b')
    request.cancel('not wanted')
    _, after = send(worker, 'x')
    engine.gate.set()
    assert after.outcome().text == 'x'


def test_threads_are_limited_from_the_next_token_on(worker, engine, settings):
    _, listener = at_gate(worker, engine, 'a <gate> b')
    settings['compute.max_threads'] = 3
    engine.gate.set()
    listener.outcome()
    assert engine.limits[:2] == [256, 256] and engine.limits[2:] == [3] * len(engine.limits[2:])
    assert len(engine.limits) > 2
