"""Where every request of every interface enters: checked, given its outlets, queued or refused."""

from collections.abc import Callable
from dataclasses import dataclass
import itertools

from flash_llm_ros.engine import GenerationRequest
from flash_llm_ros.exits import EXITS
from flash_llm_ros.node.parameters import Parameters
from flash_llm_ros.node.work.ledger import Ledger
from flash_llm_ros.node.work.request import DEFAULT_PRIORITY, Outlet, Request
from flash_llm_ros.node.work.worker import Worker
from flash_llm_ros.store.errors import ErrorCode, FlashLlmError


@dataclass(frozen=True)
class Understood:
    """What a message asks for."""

    generation: GenerationRequest
    deadline: float                     # s from now, 0 for none
    priority: int = DEFAULT_PRIORITY
    speak: bool = False


class Intake:
    """Turns what an interface was asked into a request, which always ends with one outcome."""

    def __init__(
        self,
        parameters: Parameters,
        stream: Outlet,
        spoken: Callable[[], Outlet],
        ledger: Ledger,
        current_worker: Callable[[], Worker | None],
        report_bug: Callable[[BaseException], None],
    ) -> None:
        """``stream`` is told of every request, ``spoken()`` of one that is to be spoken."""
        self._parameters = parameters
        self._stream = stream
        self._spoken = spoken
        self._ledger = ledger
        self._current_worker = current_worker
        self._report_bug = report_bug
        self._numbers = itertools.count(1)

    def next_id(self) -> str:
        """Return a name for a request that brings none."""
        return str(next(self._numbers))

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
        except EXITS:
            raise
        except BaseException as error:
            self._report_bug(error)
            return self._refuse(request_id, outlets, FlashLlmError(
                ErrorCode.INTERNAL, f'Unexpected {type(error).__name__}: {error}'))
        if understood.speak:
            outlets = self._spoken(), *outlets
        request = Request(
            request_id, understood.generation, outlets, priority=understood.priority,
            deadline=understood.deadline, stream_period=self._parameters['requests.stream_period'],
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
