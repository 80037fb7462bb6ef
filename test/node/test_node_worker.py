"""The worker's queue and the life of a request, without ROS, on a scripted engine."""

import threading
import time

import pytest
from refusals import assert_error
from scripted_engine import SETTINGS, TIMEOUT, Listener, Panic, ScriptedEngine, send

from flash_llm_ros.engine import FinishReason, GenerationRequest
from flash_llm_ros.node.work.request import Request
from flash_llm_ros.node.work.worker import Worker
from flash_llm_ros.store.errors import ErrorCode, FlashLlmError


@pytest.fixture
def bugs():
    return []


@pytest.fixture
def engine():
    return ScriptedEngine()


@pytest.fixture
def worker(engine, bugs):
    worker = Worker(engine, SETTINGS, bugs.append)
    worker.activate()
    yield worker
    engine.gate.set()
    worker.close('the test is over')
    assert engine.closed


def test_one_after_the_other_on_one_thread(worker, engine):
    listeners = [send(worker, f'answer {number}')[1] for number in range(2)]
    for number, listener in enumerate(listeners):
        assert listener.outcome().text == f'answer{number}'
        assert listener.outcome().finish_reason == FinishReason.STOP
        listener.check()
    assert engine.served == ['answer 0', 'answer 1']
    assert len(engine.threads) == 1 and engine.threads != {threading.get_ident()}


def test_queue_takes_its_size_beside_the_running_one(worker, engine):
    _, running = send(worker, 'a <gate> b')
    assert engine.at_gate.wait(TIMEOUT)
    queued = [send(worker, 'c') for _ in range(2)]
    assert worker.queue_length == 2
    with assert_error(ErrorCode.QUEUE_FULL, 'queue_size'):
        send(worker, 'd')
    queued[0][0].cancel('not wanted')
    assert worker.queue_length == 1
    late = send(worker, 'e')[1]
    engine.gate.set()
    assert running.outcome().text == 'a<gate>b'
    assert late.outcome().text == 'e'
    assert engine.served == ['a <gate> b', 'c', 'e']


def test_what_no_context_holds_does_not_wait(worker, engine):
    """Else a queue of it would be as large as the messages are."""
    _, running = send(worker, 'a <gate> b')
    assert engine.at_gate.wait(TIMEOUT)
    with assert_error(ErrorCode.PROMPT_TOO_LONG, 'long'):
        send(worker, 'x' * 1001)
    assert worker.queue_length == 0
    engine.gate.set()
    running.outcome()


def test_cancel_takes_effect_inside_a_long_piece(worker, engine):
    request, listener = send(worker, 'a <gate> b')
    assert engine.at_gate.wait(TIMEOUT)
    request.cancel('not wanted')
    outcome = listener.outcome()        # while the engine still stands at the gate
    assert (outcome.text, outcome.finish_reason) == ('a', FinishReason.CANCELLED)
    assert outcome.error.code == ErrorCode.CANCELLED
    assert outcome.cost.generated_tokens == 1
    _, after = send(worker, 'c')
    assert not after.ended.is_set()     # the engine is not free yet
    engine.gate.set()
    assert after.outcome().text == 'c'
    listener.check()
    after.check()


def test_deadlines_running_and_queued(worker, engine):
    _, running = send(worker, 'a <gate> b', deadline=0.2)
    assert engine.at_gate.wait(TIMEOUT)
    _, queued = send(worker, 'c', deadline=0.1)
    assert queued.outcome().error.code == ErrorCode.DEADLINE
    assert queued.outcome().finish_reason == FinishReason.DEADLINE
    assert running.outcome().error is None
    assert running.outcome().text == 'a'
    engine.gate.set()
    for listener in (running, queued):
        listener.check()
    assert send(worker, 'd')[1].outcome().text == 'd'
    assert 'c' not in engine.served


def test_failures_end_only_their_request(worker, bugs):
    for prompt, code in (('a <fault>', ErrorCode.READ_FAILED), ('a <bug>', ErrorCode.INTERNAL),
                         ('a <panic>', ErrorCode.INTERNAL), ('', ErrorCode.EMPTY_PROMPT)):
        _, listener = send(worker, prompt)
        assert listener.outcome().finish_reason == FinishReason.ERROR
        assert listener.outcome().error.code == code
        listener.check()
    assert [type(bug) for bug in bugs] == [ZeroDivisionError, Panic]
    assert send(worker, 'fine')[1].outcome().text == 'fine'


def test_deactivation_cancels_everything_and_waits_for_the_engine(worker, engine):
    _, running = send(worker, 'a <gate> b')
    assert engine.at_gate.wait(TIMEOUT)
    _, queued = send(worker, 'c')
    threading.Timer(0.3, engine.gate.set).start()
    worker.deactivate('stopped')
    assert engine.gates_passed == 1 and worker.phase == ''
    for listener in (running, queued):
        assert listener.outcome().error.code == ErrorCode.CANCELLED
        assert str(listener.outcome().error) == 'stopped'
        listener.check()
    with assert_error(ErrorCode.NOT_ACTIVE):
        send(worker, 'd')
    worker.activate()
    assert send(worker, 'e')[1].outcome().text == 'e'


def test_state_for_the_monitor(worker, engine):
    _, listener = send(worker, '<gate> b')
    assert engine.at_gate.wait(TIMEOUT)
    assert worker.phase == 'prefill' and worker.cost.prompt_tokens == 2
    engine.gate.set()
    listener.outcome()
    worker.deactivate('over')
    assert worker.phase == '' and worker.cost is None
    assert worker.counts == {'flash_bytes': 1}


def test_chunks_are_coalesced(worker):
    words = 'w ' * 300
    _, listener = send(worker, words, stream_period=3600.0)
    assert listener.outcome().text == 'w' * 300
    # The first piece goes out at once, the rest with the end.
    assert [len(chunk.text) for chunk in listener.chunks] == [1, 299]
    listener.check()


def test_first_end_wins(worker):
    listener = Listener()
    request = Request('r', GenerationRequest('a'), [listener])
    ends = [threading.Thread(target=end) for end in (
        lambda: request.cancel('c'), lambda: request.end(FinishReason.STOP),
        lambda: request.fail(FlashLlmError(ErrorCode.INTERNAL, 'i')))]
    for thread in ends:
        thread.start()
    for thread in ends:
        thread.join()
    assert len(listener.outcomes) == 1
    listener.check()
    request.add('too late')
    assert not request.begin()
    assert len(listener.events) == 2


def test_an_outlet_that_raises_harms_nobody(worker):
    class Broken(Listener):
        def chunk(self, chunk):
            raise OSError('nobody listens')

    failures, good = [], Listener()
    worker.submit(Request('r', GenerationRequest('a b'), [Broken(), good],
                          stream_period=0.0, on_outlet_failure=failures.append))
    assert good.outcome().text == 'ab'
    assert len(failures) == 3
    good.check()


def test_cost_does_not_change_after_the_end(worker, engine):
    request, listener = send(worker, 'a <gate> b')
    assert engine.at_gate.wait(TIMEOUT)
    generation = worker.cost
    request.cancel('over')
    engine.gate.set()
    generation.generated_tokens = 99
    assert listener.outcome().cost.generated_tokens == 1


def test_no_thread_is_left_behind(engine, bugs):
    before = threading.active_count()
    worker = Worker(engine, SETTINGS, bugs.append)
    worker.activate()
    listener = send(worker, 'a', deadline=3600.0)[1]
    listener.outcome()
    worker.close('over')
    limit = time.monotonic() + TIMEOUT
    while threading.active_count() > before and time.monotonic() < limit:
        time.sleep(0.01)
    assert threading.active_count() == before
