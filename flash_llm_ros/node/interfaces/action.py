"""The action ~/generate: streaming feedback, cancel, a typed result."""

import queue
import threading

from rclpy.action import ActionServer, CancelResponse, GoalResponse
from rclpy.action.server import ServerGoalHandle
from rclpy.callback_groups import MutuallyExclusiveCallbackGroup
from rclpy.node import Node

from flash_llm_msgs.action import GenerateText
from flash_llm_ros.client.qos import CALLS, STREAM
from flash_llm_ros.engine import FinishReason
from flash_llm_ros.node.interfaces.client_watch import ClientWatch
from flash_llm_ros.node.interfaces.conversions import (
    chunk_message,
    deadline_seconds,
    fill_answer,
    forget_texts,
    generation_request,
    is_spoken,
)
from flash_llm_ros.node.interfaces.intake import Intake, Understood
from flash_llm_ros.node.parameters import Parameters
from flash_llm_ros.node.work.request import Chunk, Outcome, Outlet, Request

# s that results are kept for clients that ask late. Every status message of the action lists all
# goals that are kept, so many of them cost time and memory.
RESULT_TIMEOUT = 30


class GenerateAction:
    """Accepts every goal: a rejected one could not carry a typed error, an aborted one does."""

    def __init__(
        self, node: Node, parameters: Parameters, intake: Intake, watch: ClientWatch,
    ) -> None:
        self._parameters = parameters
        self._intake = intake
        self._watch = watch
        self._goals: dict[bytes, _Goal] = {}
        # One short callback at a time: goals keep their order, no cancel overtakes its goal.
        group = MutuallyExclusiveCallbackGroup()
        self._to_cancel: queue.SimpleQueue[_Goal] = queue.SimpleQueue()
        self._cancels = node.create_guard_condition(self._cancel_all, callback_group=group)
        self._server = ActionServer(
            node, GenerateText, '~/generate', self._conclude,
            callback_group=group,
            goal_callback=lambda goal: GoalResponse.ACCEPT,
            handle_accepted_callback=self._accept,
            cancel_callback=self._cancel,
            goal_service_qos_profile=CALLS, result_service_qos_profile=CALLS,
            cancel_service_qos_profile=CALLS,
            feedback_pub_qos_profile=STREAM,
            result_timeout=RESULT_TIMEOUT)

    def destroy(self) -> None:
        """Take the action off the graph."""
        self._server.destroy()

    def _accept(self, handle: ServerGoalHandle) -> None:
        key = bytes(handle.goal_id.uuid)
        goal = self._goals[key] = _Goal(handle)
        goal.request = self._intake.submit(
            key.hex(), goal, lambda: self._understand(handle.request))
        forget_texts(handle.request)    # which rclpy keeps as long as the result
        self._watch.add(goal.request, '~/generate/_action/send_goal')

    def _understand(self, ask: GenerateText.Goal) -> Understood:
        parameters = self._parameters
        generation = generation_request(
            ask, max_tokens=parameters['requests.max_tokens'],
            system_prompt=parameters['requests.system_prompt'])
        deadline = deadline_seconds(ask, default=parameters['requests.default_deadline'])
        return Understood(generation, deadline, ask.priority, is_spoken(ask))

    def _cancel(self, handle: ServerGoalHandle) -> CancelResponse:
        # rclpy moves the goal to CANCELING when this has returned; who ends the request before
        # would have to wait for that. The guard's callback comes after it, in the same group.
        goal = self._goals.get(bytes(handle.goal_id.uuid))
        if goal is not None:    # else it has just ended
            self._to_cancel.put(goal)
            self._cancels.trigger()
        return CancelResponse.ACCEPT

    def _cancel_all(self) -> None:
        while not self._to_cancel.empty():
            self._to_cancel.get().request.cancel('The client cancelled the goal.')

    def _conclude(self, handle: ServerGoalHandle) -> GenerateText.Result:
        key = bytes(handle.goal_id.uuid)
        try:
            return self._goals[key].conclude()
        finally:
            del self._goals[key]


class _Goal(Outlet):
    """The outlet of one goal. Holds an executor thread only while the engine works on it."""

    def __init__(self, handle: ServerGoalHandle) -> None:
        self._handle = handle
        self.request: Request | None = None
        self._outcome: Outcome | None = None
        self._ended = threading.Event()
        self._is_executing = False

    def started(self) -> None:
        """Move the goal to EXECUTING."""
        self._is_executing = True
        self._handle.execute()

    def chunk(self, chunk: Chunk) -> None:
        """Publish feedback."""
        self._handle.publish_feedback(GenerateText.Feedback(chunk=chunk_message(chunk)))

    def done(self, outcome: Outcome) -> None:
        """Let the goal end."""
        self._outcome = outcome
        self._ended.set()
        if not self._is_executing:
            self._handle.execute()

    def conclude(self) -> GenerateText.Result:
        """Wait for the outcome, bring the goal to its last state, return the result."""
        # Blocks its executor thread: a coroutine that awaits keeps rclpy's executor busy.
        self._ended.wait()
        cancelled = self._outcome.finish_reason == FinishReason.CANCELLED
        if cancelled and self._handle.is_cancel_requested:
            self._handle.canceled()
        elif self._outcome.error is None:
            self._handle.succeed()
        else:
            self._handle.abort()
        return fill_answer(GenerateText.Result(), self._outcome)
