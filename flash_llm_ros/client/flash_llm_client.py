"""Asks a running node for text: whole, piece by piece, or in the background."""

from collections import deque
from collections.abc import Callable, Iterator
import math
import threading
import time
import traceback
from typing import Any

from action_msgs.msg import GoalStatus
from rclpy.action import ActionClient
from rclpy.action.client import ClientGoalHandle
from rclpy.callback_groups import MutuallyExclusiveCallbackGroup
from rclpy.clock import Clock, ClockType
from rclpy.exceptions import InvalidHandle
from rclpy.node import Node

from flash_llm_msgs.action import GenerateText
from flash_llm_ros.client.answer import Answer, PendingAnswer
from flash_llm_ros.client.client_request import ClientRequest
from flash_llm_ros.client.goal import make_goal
from flash_llm_ros.client.nodes_there import checked_find_timeout, full_name, not_found
from flash_llm_ros.client.own_node import OwnNode
from flash_llm_ros.client.qos import CALLS
from flash_llm_ros.client.reachable import check_may_wait, is_in_executor, why_gone
from flash_llm_ros.store.errors import ErrorCode

WATCH_PERIOD = 0.1  # s
RESULT_LATE = 2.0   # s after the end of a goal
ASK_AGAIN = 0.5     # s after a node has said that it is not active
ENDED = (GoalStatus.STATUS_SUCCEEDED, GoalStatus.STATUS_CANCELED, GoalStatus.STATUS_ABORTED)
MOST_UNANSWERED = 8     # goals at once that the node has not accepted: services lose more than 10


class FlashLlmClient:
    """A client of ~/generate of one node.

    >>> with FlashLlmClient() as llm:
    ...     print(llm.generate('Name the capital of France.'))
    ...     for piece in llm.stream('Tell me a story.', max_tokens=60):
    ...         print(piece, end='', flush=True)

    Without ``node`` it makes a node and an rclpy context of its own and spins them in a thread of
    its own until ``close()``. With ``node`` it spins nothing: answers come while the executor of
    that node runs. There, ``start`` with callbacks suits every executor; ``generate``, ``stream``
    and ``result`` wait, which only another thread than the executor's may do, or a callback under
    a MultiThreadedExecutor. Waiting where it would last forever raises RuntimeError instead.
    """

    def __init__(
        self,
        name: str = 'flash_llm',
        *,
        node: Node | None = None,
        domain_id: int | None = None,
        find_timeout: float = 10.0,
    ) -> None:
        """``name`` of the serving node, with its namespace if it has one.

        ``find_timeout`` is how many seconds a request waits for the node to be there and active,
        and for the executor of ``node`` to run; ``domain_id`` holds for a client without a
        ``node``. Raises RuntimeError where that node is of no use any more, ValueError for a wrong
        name or time.
        """
        self.name = full_name(name)
        self._find_timeout = checked_find_timeout(find_timeout)
        self._lock = threading.Lock()
        self._guarded = False       # a thread of `_guard` runs
        self._end = ''      # why nothing can be asked any more
        self._closed = False
        self._outbox: deque[Callable[[], None]] = deque()
        self._requests: dict[PendingAnswer, ClientRequest] = {}
        self._waiting: deque[ClientRequest] = deque()
        self._unanswered: set[ClientRequest] = set()
        self._ran_at = 0.0                  # s of time.monotonic(), when the executor last did
        self._telling: int | None = None    # thread that is in a callback of ours
        self._own = OwnNode('flash_llm_client', domain_id, self._thread_ended) if (
            node is None) else None
        self._node = self._own.node if self._own else node
        self._check_alive()
        self._own_name = self._node.get_name()
        # Everything is sent and received in one group: rclpy's action client drops an answer that
        # another thread takes before the request is entered.
        group = MutuallyExclusiveCallbackGroup()
        # DDS brings every client the answers to all of them: of few it would forget ours.
        self._action = ActionClient(
            self._node, GenerateText, f'{self.name}/generate', callback_group=group,
            goal_service_qos_profile=CALLS, result_service_qos_profile=CALLS,
            cancel_service_qos_profile=CALLS)
        self._wake = self._node.create_guard_condition(self._send_all, callback_group=group)
        self._watch = self._node.create_timer(
            WATCH_PERIOD, self._look, callback_group=group,
            clock=Clock(clock_type=ClockType.STEADY_TIME))

    def __enter__(self) -> 'FlashLlmClient':
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Cancel what is under way and leave the graph; a ``node`` that was given stays.

        RuntimeError in a callback of a client without a ``node``, whose own thread that is.
        """
        if self._own is not None and self._telling == threading.get_ident():
            raise RuntimeError('The client cannot be closed in a callback of its own thread.')
        with self._lock:
            if self._closed:
                return
            self._closed, self._end = True, 'The client was closed.'
        self.cancel()
        if self._own is not None:
            self._wait_until_cancelled()
            self._own.stop()
        self._lose_all()
        self._node.destroy_timer(self._watch)
        self._node.destroy_guard_condition(self._wake)
        self._action.destroy()
        if self._own is not None:
            self._own.destroy()

    def generate(self, prompt: str = '', *, timeout: float | None = None, **options: Any) -> Answer:
        """Wait for the whole answer. ``options`` are those of ``make_goal``.

        After ``timeout`` seconds the request is cancelled and TimeoutError raised. Raises
        AnswerError with the node's error code, NodeLostError, ValueError for a wrong option.
        """
        pending = self.start(prompt, **options)
        try:
            return pending.result(timeout)
        finally:
            pending.cancel()

    def stream(self, prompt: str = '', **options: Any) -> Iterator[str]:
        """Return an iterator over the text as it comes; leaving the loop early cancels.

        ``options`` and errors as of ``generate``; errors come at the end of the text.
        """
        return self.start(prompt, **options).until_left()

    def start(
        self,
        prompt: str = '',
        *,
        on_text: Callable[[str], None] | None = None,
        on_done: Callable[[PendingAnswer], None] | None = None,
        **options: Any,
    ) -> PendingAnswer:
        """Ask and return at once. The callbacks run in the executor's thread and must be short.

        ``on_done`` comes last, exactly once, whatever happens: ``result()`` then returns or raises
        at once. It comes in another thread where the executor does not run within
        ``find_timeout``, or never will. A callback that raises is logged and ends its own request
        only. ``options`` as of ``generate``. Raises RuntimeError where nothing can be asked any
        more: the client was closed, its node destroyed, rclpy shut down.
        """
        return self.send(make_goal(prompt, **options), on_text=on_text, on_done=on_done)

    def send(
        self,
        goal: GenerateText.Goal,
        *,
        on_text: Callable[[str], None] | None = None,
        on_done: Callable[[PendingAnswer], None] | None = None,
    ) -> PendingAnswer:
        """Send a goal and return at once; as ``start``."""
        self._check_alive()
        answer = PendingAnswer(
            self._check_may_wait, self._cancel, self._log_failure, on_text, on_done)
        request = ClientRequest(goal, answer)
        with self._lock:
            if self._end:
                raise RuntimeError(self._end)
            self._requests[answer] = request
            if not self._guarded:
                self._guarded = True
                threading.Thread(target=self._guard, daemon=True).start()
        self._post(lambda: self._send(request), request)
        return answer

    def cancel(self) -> None:
        """Cancel every request of this client; returns at once."""
        with self._lock:
            pending = list(self._requests)
        for answer in pending:
            answer.cancel()

    def is_ready(self) -> bool:
        """Whether the node has been found; RuntimeError as of ``start``."""
        self._check_alive()
        return self._action.server_is_ready()

    def wait_until_ready(self, timeout: float) -> bool:
        """Wait until the node has been found; ``timeout`` in seconds. Returns whether it was.

        RuntimeError as of ``start``.
        """
        limit = time.monotonic() + timeout
        while not self.is_ready() and time.monotonic() < limit:
            time.sleep(WATCH_PERIOD / 2)
        return self.is_ready()

    def _check_may_wait(self) -> None:
        check_may_wait(self._node, self._telling == threading.get_ident())

    def _check_alive(self) -> None:
        if why := self._why_gone():
            raise RuntimeError(why)

    def _why_gone(self) -> str:
        """Why no answer can come any more, or ''."""
        return self._end or why_gone(self._node)

    def _guard(self) -> None:
        """In a thread while there are requests: sees where no executor will ever bring them."""
        while True:
            time.sleep(WATCH_PERIOD)
            with self._lock:
                requests = list(self._requests.values())
                self._guarded = bool(requests)
            if not requests:
                return
            why = why_gone(self._node)
            late = time.monotonic() - self._find_timeout
            for request in requests:
                if why:
                    self._lose(request, why)
                elif request.asked_at < late and (not request.is_taken or (
                        self._ran_at < late and not is_in_executor(self._node))):
                    self._lose(request, f'The executor of {self._own_name} has not run for '
                                        f'{self._find_timeout:g} s.')

    def _wait_until_cancelled(self) -> None:
        limit = time.monotonic() + 2.0
        while self._requests and time.monotonic() < limit:
            time.sleep(0.01)

    def _thread_ended(self, why: str) -> None:
        with self._lock:
            self._end = self._end or f"The client's thread has ended: {why}."
        self._lose_all()

    def _lose_all(self) -> None:
        for request in list(self._requests.values()):
            self._lose(request, self._end)

    def _log_failure(self, what: str, error: Exception) -> None:
        trace = ''.join(traceback.format_exception(error))
        self._node.get_logger().error(f'{what} raised {type(error).__name__}: {error}\n{trace}')

    # What follows runs in the callback group.

    def _post(self, action: Callable[[], None], request: ClientRequest) -> None:
        self._outbox.append(lambda: self._tell(request, action))
        try:
            self._wake.trigger()
        except InvalidHandle:
            self._lose(request, self._why_gone())

    def _send_all(self) -> None:
        while self._outbox:
            self._outbox.popleft()()

    def _tell(self, request: ClientRequest | None, action: Callable[..., None],
              *arguments: object) -> None:
        """What goes wrong with one request must not take the thread, and so all others, along."""
        before, self._telling = self._telling, threading.get_ident()
        self._ran_at = time.monotonic()
        try:
            action(*arguments)
        except Exception as error:
            self._log_failure('A request' if request else 'The client', error)
            if request is not None:
                self._forget(request)
                request.answer.fail(error)
        finally:
            self._telling = before

    def _send(self, request: ClientRequest) -> None:
        request.is_taken = True
        self._waiting.append(request)
        self._watch.reset()
        self._send_waiting()

    def _send_waiting(self) -> None:
        servers = self._servers() if self._waiting and self._action.server_is_ready() else None
        if not servers:
            return
        later: list[ClientRequest] = []
        while self._waiting and len(self._unanswered) < MOST_UNANSWERED:
            request = self._waiting.popleft()
            if request.answer.done:
                continue
            if request.send_at > time.monotonic():
                later.append(request)
            else:
                self._tell(request, self._send_to, request, servers)
        self._waiting.extendleft(reversed(later))

    def _send_to(self, request: ClientRequest, servers: set[bytes]) -> None:
        future = self._action.send_goal_async(request.goal, lambda message: self._tell(
            request, request.answer.take, message.feedback.chunk))
        request.servers = servers
        self._unanswered.add(request)
        # Done callbacks may run outside of the group.
        future.add_done_callback(lambda future: self._post(
            lambda: self._accepted(request, future.result()), request))

    def _accepted(self, request: ClientRequest, handle: ClientGoalHandle) -> None:
        self._unanswered.discard(request)
        self._send_waiting()
        if not handle.accepted:
            self._lose(request, f'{self.name} rejected the goal; it is not a flash_llm node.')
            return
        request.handle = handle
        self._ask_for_result(request)
        if request.answer.cancel_wanted:
            self._cancel_sent(request)

    def _ask_for_result(self, request: ClientRequest) -> None:
        request.ended_at = None
        request.handle.get_result_async().add_done_callback(lambda future: self._post(
            lambda: self._finished(request, future.result()), request))

    def _finished(
        self, request: ClientRequest, response: GenerateText.Impl.GetResultService.Response,
    ) -> None:
        if response.status == GoalStatus.STATUS_UNKNOWN:
            self._lose_with_node(request)
        elif self._may_become_active(request, response.result):
            request.handle, request.servers = None, set()
            request.send_at = time.monotonic() + ASK_AGAIN
            self._waiting.append(request)
        else:
            self._forget(request)
            request.answer.finish(response.result, self.name)

    def _may_become_active(self, request: ClientRequest, result: GenerateText.Result) -> bool:
        """A node that has just been started is there before it is active."""
        patience = min(self._find_timeout, request.goal.deadline or math.inf)
        return (result.error.code == ErrorCode.NOT_ACTIVE and not request.answer.cancel_wanted
                and time.monotonic() + ASK_AGAIN < request.asked_at + patience)

    def _cancel(self, answer: PendingAnswer) -> None:
        request = self._requests.get(answer)
        if request is not None:
            self._post(lambda: self._cancel_sent(request), request)

    def _cancel_sent(self, request: ClientRequest) -> None:
        if not request.servers:
            self._forget(request)
            request.answer.cancel_unsent()
        elif request.handle is not None and not request.is_cancelling:
            request.is_cancelling = True
            request.handle.cancel_goal_async()

    def _look(self) -> None:
        """Send what has waited for the node; give up what waits for a node that is not there."""
        self._tell(None, self._look_at_all)

    def _look_at_all(self) -> None:
        if not self._requests:
            self._watch.cancel()
            return
        self._send_waiting()
        servers, now = self._servers(), time.monotonic()
        for request in list(self._requests.values()):
            if not request.servers:
                if not servers and now - request.asked_at > self._find_timeout:
                    self._lose(request, not_found(self.name, self._find_timeout, self._node))
            elif not request.servers & servers:
                self._lose_with_node(request)
            elif request.handle is not None and request.handle.status in ENDED:
                # Of many results at once some are lost; the node keeps them for a while.
                request.ended_at = request.ended_at or now
                if now - request.ended_at > RESULT_LATE:
                    self._ask_for_result(request)

    def _servers(self) -> set[bytes]:
        found = self._node.get_publishers_info_by_topic(f'{self.name}/generate/_action/status')
        return {bytes(endpoint.endpoint_gid) for endpoint in found}

    def _lose_with_node(self, request: ClientRequest) -> None:
        # A node that was started again in its place has another identity and knows of no goal.
        self._lose(request, f'The node {self.name} has left before it answered.')

    def _lose(self, request: ClientRequest, message: str) -> None:
        self._forget(request)
        request.answer.lose(message)

    def _forget(self, request: ClientRequest) -> None:
        with self._lock:
            self._requests.pop(request.answer, None)
        self._unanswered.discard(request)
