"""The service ~/generate_text: short calls that end by their deadline."""

import threading

from rclpy.callback_groups import ReentrantCallbackGroup
from rclpy.node import Node

from flash_llm_msgs.srv import GenerateText
from flash_llm_ros.client.qos import CALLS
from flash_llm_ros.node.interfaces.client_watch import ClientWatch
from flash_llm_ros.node.interfaces.conversions import (
    deadline_seconds,
    fill_answer,
    generation_request,
    is_spoken,
)
from flash_llm_ros.node.interfaces.intake import Intake, Understood
from flash_llm_ros.node.parameters import Parameters
from flash_llm_ros.node.work.request import Outcome, Outlet
from flash_llm_ros.store.errors import ErrorCode, FlashLlmError

MOST_CALLS = 2  # calls that may wait at a time: each holds a thread of the executor


class GenerateService:
    """Answers every call, at the latest when its deadline has passed."""

    def __init__(
        self, node: Node, parameters: Parameters, intake: Intake, watch: ClientWatch,
    ) -> None:
        self._parameters = parameters
        self._intake = intake
        self._watch = watch
        self._places = threading.Semaphore(MOST_CALLS)
        node.create_service(
            GenerateText, '~/generate_text', self._answer,
            qos_profile=CALLS, callback_group=ReentrantCallbackGroup())

    def _answer(
        self, ask: GenerateText.Request, response: GenerateText.Response,
    ) -> GenerateText.Response:
        has_place = self._places.acquire(blocking=False)
        try:
            call = _Call()
            request = self._intake.submit(
                self._intake.next_id(), call, lambda: self._understand(ask, has_place))
            self._watch.add(request, '~/generate_text')
            return fill_answer(response, call.outcome())
        finally:
            if has_place:
                self._places.release()

    def _understand(self, ask: GenerateText.Request, has_place: bool) -> Understood:
        parameters = self._parameters
        generation = generation_request(
            ask, max_tokens=parameters['requests.max_tokens'],
            system_prompt=parameters['requests.system_prompt'])
        deadline = deadline_seconds(ask, default=parameters['requests.service_deadline'])
        if not has_place:
            raise FlashLlmError(
                ErrorCode.QUEUE_FULL,
                f'{MOST_CALLS} calls of ~/generate_text wait already; use the action ~/generate.')
        return Understood(generation, deadline, ask.priority, is_spoken(ask))


class _Call(Outlet):
    """The outlet of one call."""

    def __init__(self) -> None:
        self._ended = threading.Event()
        self._outcome: Outcome | None = None

    def done(self, outcome: Outcome) -> None:
        """Let the call return."""
        self._outcome = outcome
        self._ended.set()

    def outcome(self) -> Outcome:
        """Wait for the outcome; the request's deadline bounds it."""
        self._ended.wait()
        return self._outcome
