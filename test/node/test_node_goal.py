"""The order of a goal's last steps, which a real node meets only now and then."""

import threading

import pytest

from flash_llm_ros.engine import FinishReason, GenerationRequest
from flash_llm_ros.node.work.request import Request
from flash_llm_ros.store.errors import ErrorCode, FlashLlmError

pytestmark = pytest.mark.ros


class Handle:
    """A goal handle that refuses the transitions that rcl refuses."""

    def __init__(self):
        self.steps = []
        self.is_cancel_requested = False

    def publish_feedback(self, feedback):
        self.steps.append('feedback')

    def execute(self):
        self.steps.append('execute')

    def canceled(self):
        assert self.is_cancel_requested
        self.steps.append('canceled')

    def succeed(self):
        self.steps.append('succeed')

    def abort(self):
        self.steps.append('abort')


@pytest.fixture
def handle():
    return Handle()


def make(handle):
    from flash_llm_ros.node.interfaces.generate_action import _Goal

    goal = _Goal(handle)
    goal.request = Request('r', GenerationRequest('a'), [goal])
    return goal, goal.request


def test_canceling_comes_after_the_outcome(handle):
    """rclpy changes the state when the cancel callback, which ends the request, has returned."""
    goal, _ = make(handle)
    goal.cancel()
    later = threading.Timer(0.2, lambda: setattr(handle, 'is_cancel_requested', True))
    later.start()
    assert goal.conclude().error.code == ErrorCode.CANCELLED
    assert handle.steps == ['feedback', 'execute', 'canceled']


def test_cancel_after_the_answer_changes_nothing_of_it(handle):
    goal, request = make(handle)
    request.begin()
    request.add('text')
    request.end(FinishReason.STOP)
    goal.cancel()
    handle.is_cancel_requested = True
    assert goal.conclude().text == 'text'
    assert handle.steps == ['execute', 'feedback', 'feedback', 'canceled']


@pytest.mark.parametrize(('reason', 'error', 'last'), [
    (FinishReason.STOP, None, 'succeed'),
    (FinishReason.DEADLINE, None, 'succeed'),
    (FinishReason.ERROR, FlashLlmError(ErrorCode.READ_FAILED, 'no flash'), 'abort'),
    (FinishReason.CANCELLED, FlashLlmError(ErrorCode.CANCELLED, 'deactivated'), 'abort'),
])
def test_last_state(handle, reason, error, last):
    goal, request = make(handle)
    request.begin()
    request.end(reason, error)
    assert goal.conclude().finish_reason == reason
    assert handle.steps == ['execute', 'feedback', last]
