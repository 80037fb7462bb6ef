"""The action ~/generate: streaming feedback, cancel, a typed result."""

import threading
import time

from rclpy.action import ActionServer, CancelResponse, GoalResponse
from rclpy.action.server import ServerGoalHandle
from rclpy.callback_groups import MutuallyExclusiveCallbackGroup
from rclpy.node import Node
from rclpy.qos import QoSProfile

from flash_llm_msgs.action import GenerateText
from flash_llm_ros.node.interfaces.client_watch import ClientWatch
from flash_llm_ros.node.interfaces.conversions import (
    chunk_message,
    deadline_seconds,
    fill_answer,
    generation_request,
)
from flash_llm_ros.node.interfaces.intake import CALLS, STREAM_DEPTH, Intake, Understood
from flash_llm_ros.node.parameters import Parameters
from flash_llm_ros.node.work.request import Chunk, Outcome, Request

# s that results are kept for clients that ask late. Every status message of the action lists all
# goals that are kept, so many of them cost time and memory.
RESULT_TIMEOUT = 30
CANCEL_STATE_TIMEOUT = 5.0  # s


class GenerateAction:
    """Accepts every goal: a rejected one could not carry a typed error, an aborted one does."""

    def __init__(
        self, node: Node, parameters: Parameters, intake: Intake, watch: ClientWatch,
    ) -> None:
        self._parameters = parameters
        self._intake = intake
        self._watch = watch
        self._goals: dict[bytes, _Goal] = {}
        self._server = ActionServer(
            node, GenerateText, '~/generate', self._conclude,
            # One short callback at a time: goals keep their order, no cancel overtakes its goal.
            callback_group=MutuallyExclusiveCallbackGroup(),
            goal_callback=lambda goal: GoalResponse.ACCEPT,
            handle_accepted_callback=self._accept,
            cancel_callback=self._cancel,
            goal_service_qos_profile=CALLS, result_service_qos_profile=CALLS,
            cancel_service_qos_profile=CALLS,
            feedback_pub_qos_profile=QoSProfile(depth=STREAM_DEPTH),
            result_timeout=RESULT_TIMEOUT)

    def destroy(self) -> None:
        """Take the action off the graph."""
        self._server.destroy()

    def _accept(self, handle: ServerGoalHandle) -> None:
        key = bytes(handle.goal_id.uuid)
        goal = self._goals[key] = _Goal(handle)
        goal.request = self._intake.submit(
            key.hex(), goal, lambda: self._understand(handle.request))
        self._watch.add(goal.request, '~/generate/_action/send_goal')

    def _understand(self, ask: GenerateText.Goal) -> Understood:
        parameters = self._parameters
        generation = generation_request(
            ask, max_tokens=parameters['max_tokens'], system_prompt=parameters['system_prompt'])
        deadline = deadline_seconds(ask, default=parameters['default_deadline'])
        return Understood(generation, deadline, ask.priority)

    def _cancel(self, handle: ServerGoalHandle) -> CancelResponse:
        goal = self._goals.get(bytes(handle.goal_id.uuid))
        if goal is not None:    # else it has just ended
            goal.cancel()
        return CancelResponse.ACCEPT

    def _conclude(self, handle: ServerGoalHandle) -> GenerateText.Result:
        key = bytes(handle.goal_id.uuid)
        try:
            return self._goals[key].conclude()
        finally:
            del self._goals[key]


class _Goal:
    """The outlet of one goal. Holds an executor thread only while the engine works on it."""

    def __init__(self, handle: ServerGoalHandle) -> None:
        self._handle = handle
        self.request: Request | None = None
        self._cancelled = False
        self._outcome: Outcome | None = None
        self._ended = threading.Event()
        self._is_executing = False

    def cancel(self) -> None:
        """End the request."""
        self._cancelled = True
        self.request.cancel('The client cancelled the goal.')

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
        if self._cancelled and self._cancel_arrived():
            self._handle.canceled()
        elif self._outcome.error is None:
            self._handle.succeed()
        else:
            self._handle.abort()
        return fill_answer(GenerateText.Result(), self._outcome)

    def _cancel_arrived(self) -> bool:
        # rclpy moves the goal to CANCELING only after the cancel callback, which has ended the
        # request, has returned.
        limit = time.monotonic() + CANCEL_STATE_TIMEOUT
        while not self._handle.is_cancel_requested and time.monotonic() < limit:
            time.sleep(0.001)
        return self._handle.is_cancel_requested
