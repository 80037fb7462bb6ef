"""The order of a goal's last steps, which a real node meets only now and then."""

import threading

import pytest
from ros_fixtures import new_domain

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
    from flash_llm_ros.node.interfaces.action import _Goal

    goal = _Goal(handle)
    goal.request = Request('r', GenerationRequest('a'), [goal])
    return goal, goal.request


def test_a_cancelled_goal_is_concluded_at_once(handle):
    goal, request = make(handle)
    handle.is_cancel_requested = True
    request.cancel('The client cancelled the goal.')
    assert goal.conclude().error.code == ErrorCode.CANCELLED
    assert handle.steps == ['feedback', 'execute', 'canceled']


def test_cancel_after_the_answer_changes_nothing_of_it(handle):
    goal, request = make(handle)
    request.begin()
    request.add('text')
    request.end(FinishReason.STOP)
    handle.is_cancel_requested = True
    request.cancel('The client cancelled the goal.')
    assert goal.conclude().text == 'text'
    assert handle.steps == ['execute', 'feedback', 'feedback', 'succeed']


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


class Intake:
    """Has a request whose end shows what rclpy had made of its goal by then."""

    def submit(self, request_id, goal, understand):
        intake = self

        class Canceled(Request):
            def cancel(self, message):
                intake.was_canceling = goal._handle.is_cancel_requested
                super().cancel(message)

        return Canceled(request_id, GenerationRequest('a'), [goal])


class Nobody:
    """Watches over nothing."""

    def add(self, request, service):
        pass


def test_a_request_ends_when_its_goal_is_canceling():
    """Ended before, the goal's executor thread could only poll for the state that rclpy sets."""
    import rclpy
    from rclpy.context import Context
    from rclpy.executors import MultiThreadedExecutor
    from rclpy.node import Node

    from flash_llm_msgs.action import GenerateText
    from flash_llm_ros.client.operator import CANCELED, OperatorClient
    from flash_llm_ros.node.interfaces.action import GenerateAction

    domain, context, intake = new_domain(), Context(), Intake()
    rclpy.init(context=context, domain_id=domain)
    node = Node('flash_llm', context=context)
    action = GenerateAction(node, {}, intake, Nobody())
    executor = MultiThreadedExecutor(4, context=context)
    executor.add_node(node)
    spinner = threading.Thread(target=executor.spin)
    spinner.start()
    try:
        with OperatorClient(domain_id=domain) as client:
            client.until(client.generate.server_is_ready, 30, 'the action')
            goal = client.send_goal(GenerateText.Goal(prompt='a'))
            assert goal.cancel()
            assert goal.result(30)[0] == CANCELED
        assert intake.was_canceling
    finally:
        executor.shutdown()
        spinner.join()
        action.destroy()
        node.destroy_node()
        rclpy.shutdown(context=context)
