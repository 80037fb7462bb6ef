"""Where every request of every interface enters: checked, given its outlets, queued or refused."""

from collections.abc import Callable
from dataclasses import dataclass

from rclpy.callback_groups import CallbackGroup
from rclpy.node import Node
from rclpy.qos import QoSProfile

from flash_llm_msgs.msg import TokenChunk
from flash_llm_ros.engine import GenerationRequest
from flash_llm_ros.node.interfaces.conversions import chunk_message
from flash_llm_ros.node.parameters import Parameters
from flash_llm_ros.node.work.ledger import Ledger
from flash_llm_ros.node.work.request import DEFAULT_PRIORITY, Chunk, Outcome, Outlet, Request
from flash_llm_ros.node.work.worker import Worker
from flash_llm_ros.store.errors import ErrorCode, FlashLlmError

STREAM_DEPTH = 200  # chunks a slow subscriber may lag behind
# Calls that may wait for the executor at once. Of more, DDS would forget the oldest; of its default
# of 10 it did with 20 clients on a busy machine.
CALLS = QoSProfile(depth=1000)


@dataclass(frozen=True)
class Understood:
    """What a message asks for."""

    generation: GenerationRequest
    deadline: float                     # s from now, 0 for none
    priority: int = DEFAULT_PRIORITY


class StreamTopic:
    """~/stream: the chunks of every request of every interface."""

    def __init__(self, node: Node, callback_group: CallbackGroup) -> None:
        self._publisher = node.create_publisher(
            TokenChunk, '~/stream', QoSProfile(depth=STREAM_DEPTH), callback_group=callback_group)

    def started(self) -> None:
        """Say nothing: the first chunk tells."""

    def chunk(self, chunk: Chunk) -> None:
        """Publish the chunk."""
        self._publisher.publish(chunk_message(chunk))

    def done(self, outcome: Outcome) -> None:
        """Say nothing: the last chunk has told."""


class Intake:
    """Turns what an interface was asked into a request, which always ends with one outcome."""

    def __init__(
        self,
        parameters: Parameters,
        stream: StreamTopic,
        ledger: Ledger,
        current_worker: Callable[[], Worker | None],
        report_bug: Callable[[Exception], None],
    ) -> None:
        self._parameters = parameters
        self._stream = stream
        self._ledger = ledger
        self._current_worker = current_worker
        self._report_bug = report_bug

    def submit(
        self,
        request_id: str,
        outlet: Outlet,
        understand: Callable[[], Understood],
    ) -> Request:
        """Queue a request; a refusal is an outcome too, told to the outlet before this returns.

        ``understand`` reads the message; it raises FlashLlmError for what makes no sense.
        """
        outlets = (self._stream, self._ledger.watch(), outlet)
        try:
            understood = understand()
        except FlashLlmError as error:
            return self._refuse(request_id, outlets, error)
        except Exception as error:
            self._report_bug(error)
            return self._refuse(request_id, outlets, FlashLlmError(
                ErrorCode.INTERNAL, f'Unexpected {type(error).__name__}: {error}'))
        request = Request(
            request_id, understood.generation, outlets, priority=understood.priority,
            deadline=understood.deadline, stream_period=self._parameters['stream_period'],
            on_outlet_failure=self._report_bug)
        worker = self._current_worker()
        try:
            if worker is None:
                raise FlashLlmError(
                    ErrorCode.NOT_ACTIVE, 'The node is not active; configure and activate it.')
            worker.submit(request)
        except FlashLlmError as error:
            request.fail(error)
        return request

    def _refuse(
        self, request_id: str, outlets: tuple[Outlet, ...], error: FlashLlmError,
    ) -> Request:
        request = Request(request_id, None, outlets, on_outlet_failure=self._report_bug)
        request.fail(error)
        return request
