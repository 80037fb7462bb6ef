"""Asks several running nodes as if they were one: each request goes where it is answered first."""

from bisect import insort
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator
from functools import partial
import itertools
import math
import threading
import time
import traceback
from typing import Any

from flash_llm_msgs.action import GenerateText
from flash_llm_msgs.msg import EngineStatus
from flash_llm_ros.client.answer import Answer, AnswerError, NodeLostError, PendingAnswer
from flash_llm_ros.client.fleet_member import FleetMember, first_to_answer
from flash_llm_ros.client.fleet_request import FleetRequest
from flash_llm_ros.client.goal import make_goal
from flash_llm_ros.client.nodes_there import checked_find_timeout, full_name
from flash_llm_ros.client.own_node import OwnNode
from flash_llm_ros.client.seen_nodes import SeenNode, SeenNodes
from flash_llm_ros.finish_reason import FinishReason
from flash_llm_ros.store.errors import ErrorCode

PERIOD = 0.25           # s between two looks at the graph, at deadlines and at who is silent
MOST_SESSIONS = 10_000  # whose nodes are remembered: more than nodes keep
# The node takes no request now; another does, or it does later.
NOT_NOW = (ErrorCode.QUEUE_FULL, ErrorCode.NOT_ACTIVE, ErrorCode.TOO_MANY_SESSIONS,
           ErrorCode.CANCELLED)
# Something is wrong with the node's flash, which says nothing about the request.
FAULTS = (ErrorCode.READ_FAILED, ErrorCode.CHECKSUM_MISMATCH)


class FlashLlmFleet:
    """A client of several nodes, which are one service to it.

    >>> with FlashLlmFleet() as llm:        # all nodes in the ROS graph
    ...     print(llm.generate('Name the capital of France.').node)

    A request goes to the node that will have answered it first, by what runs and waits there and by
    its speed; a conversation stays with the node that began it. When a node leaves, falls silent,
    is full or has a flash that fails, its requests go to others, but one whose first token was here
    only where ``again`` asks for it. It spins a node of its own in a thread of its own.
    """

    def __init__(
        self,
        nodes: Iterable[str] = (),
        *,
        domain_id: int | None = None,
        find_timeout: float = 10.0,
    ) -> None:
        """``nodes`` with their namespaces; none: all that are or come into the ROS graph.

        ``find_timeout`` is how many seconds a request waits while no node is active. Raises
        ValueError for a wrong name or time.
        """
        if isinstance(nodes, str):
            raise ValueError(f'nodes is {nodes!r}; it has to be a list of names.')
        names = {full_name(name) for name in nodes}
        self._find_timeout = checked_find_timeout(find_timeout)
        self._lock = threading.Lock()
        self._end = ''      # why nothing can be asked any more
        self._closed = False
        self._numbers = itertools.count()
        self._outbox: deque[Callable[[], None]] = deque()
        self._requests: dict[PendingAnswer, FleetRequest] = {}
        self._waiting: list[FleetRequest] = []
        self._members: dict[str, FleetMember] = {}
        self._homes: OrderedDict[str, str] = OrderedDict()  # session -> the node that has it
        self._talking: set[str] = set()     # sessions with a turn under way
        self._own = OwnNode('flash_llm_fleet', domain_id, self._thread_ended)
        self._node = self._own.node
        self._seen = SeenNodes(self._node, names, self._take_status)
        self._wake = self._node.create_guard_condition(self._do_all)
        self._timer = self._node.create_timer(PERIOD, self._look)
        self._post(self._look)

    def __enter__(self) -> 'FlashLlmFleet':
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Cancel what is under way and leave the graph; RuntimeError in a callback of the fleet."""
        if self._own.runs_here:
            raise RuntimeError('The fleet cannot be closed in a callback of its own thread.')
        with self._lock:
            if self._closed:
                return
            self._closed, self._end = True, 'The fleet was closed.'
        self.cancel()
        limit = time.monotonic() + 2.0
        while self._requests and time.monotonic() < limit:
            time.sleep(0.01)
        self._own.stop()
        self._lose_all()
        for member in self._members.values():
            member.client.close()
        self._own.destroy()

    def statuses(self) -> dict[str, EngineStatus]:
        """Return the latest ~/status of every active node, by its full name."""
        return {node.name: node.status for node in list(self._seen.nodes.values())
                if node.is_active}

    def generate(self, prompt: str = '', *, timeout: float | None = None, model: str = '',
                 again: bool = False, **options: Any) -> Answer:
        """Wait for the whole answer; as ``FlashLlmClient.generate``.

        ``model``: only nodes with this one are asked, by its name in ~/status. ``again``: ask
        another node, too, when one leaves within its answer.
        """
        pending = self._start(
            make_goal(prompt, **options), None, None, model=model, again=again, whole=True)
        try:
            return pending.result(timeout)
        finally:
            pending.cancel()

    def stream(self, prompt: str = '', *, model: str = '', again: bool = False,
               **options: Any) -> Iterator[str]:
        """Return an iterator over the text as it comes; leaving the loop early cancels.

        ``model`` as of ``generate``. ``again``: when a node leaves within its answer, a node with
        the same model goes on. What was shown has to be how its answer begins, else NodeLostError
        is raised.
        """
        return self.start(prompt, model=model, again=again, **options).until_left()

    def start(
        self,
        prompt: str = '',
        *,
        on_text: Callable[[str], None] | None = None,
        on_done: Callable[[PendingAnswer], None] | None = None,
        model: str = '',
        again: bool = False,
        **options: Any,
    ) -> PendingAnswer:
        """Ask and return at once; as ``FlashLlmClient.start``, the rest as of ``stream``.

        The callbacks run in the fleet's own thread and must be short.
        """
        return self._start(make_goal(prompt, **options), on_text, on_done,
                           model=model, again=again, whole=False)

    def cancel(self) -> None:
        """Cancel every request of this fleet; returns at once."""
        with self._lock:
            pending = list(self._requests)
        for answer in pending:
            answer.cancel()

    def _start(
        self, goal: GenerateText.Goal, on_text: Callable[[str], None] | None,
        on_done: Callable[[PendingAnswer], None] | None, *, model: str, again: bool, whole: bool,
    ) -> PendingAnswer:
        answer = PendingAnswer(
            self._check_may_wait, self._cancel, self._log_failure, on_text, on_done)
        request = FleetRequest(
            goal, answer, next(self._numbers), model=model, again=again, whole=whole)
        with self._lock:
            if self._end:
                raise RuntimeError(self._end)
            self._requests[answer] = request
        self._post(self._wait, request)
        return answer

    def _check_may_wait(self) -> None:
        if self._own.runs_here:
            raise RuntimeError('Waiting for an answer in a callback of the thread that has to '
                               'bring it; use start() with on_done.')

    def _cancel(self, answer: PendingAnswer) -> None:
        request = self._requests.get(answer)
        if request is not None:
            self._post(self._cancel_now, request)

    def _log_failure(self, what: str, error: Exception) -> None:
        trace = ''.join(traceback.format_exception(error))
        self._node.get_logger().error(f'{what} raised {type(error).__name__}: {error}\n{trace}')

    def _thread_ended(self, why: str) -> None:
        with self._lock:
            self._end = self._end or f"The fleet's thread has ended: {why}."
        self._lose_all()

    def _lose_all(self) -> None:
        for request in list(self._requests.values()):
            self._fail(request, NodeLostError(self._end))

    def _post(self, action: Callable[..., None], *arguments: object) -> None:
        self._outbox.append(partial(action, *arguments))
        self._wake.trigger()

    # What follows runs in the fleet's thread.

    def _do_all(self) -> None:
        while self._outbox:
            self._outbox.popleft()()
        self._send_waiting()

    def _wait(self, request: FleetRequest) -> None:
        request.nowhere_since = time.monotonic()
        insort(self._waiting, request, key=lambda each: each.rank)

    def _take_status(self, seen: SeenNode) -> None:
        if member := self._members.get(seen.name):
            member.look()
        self._send_waiting()

    def _look(self) -> None:
        self._seen.look()
        for name, seen in self._seen.nodes.items():
            if name not in self._members:
                self._members[name] = FleetMember(seen, self._node, self._find_timeout)
        for member in self._members.values():
            if not member.is_able:
                for request in list(member.requests):
                    self._move(request)
        for request in list(self._waiting):
            self._look_at(request)
        self._send_waiting()

    def _look_at(self, request: FleetRequest) -> None:
        """Give a waiting request up whose time is over, or for which no node has come."""
        now = time.monotonic()
        if any(self._suits(member, request) for member in self._members.values()):
            request.nowhere_since = now
        if now > request.ends_at:
            self._fail(request, AnswerError(
                ErrorCode.DEADLINE, 'The deadline passed before a node was free.',
                Answer(request.shown, FinishReason.DEADLINE)))
        elif now - request.nowhere_since > self._find_timeout:
            self._fail(request, NodeLostError(self._not_found(request)))

    def _not_found(self, request: FleetRequest) -> str:
        home = self._homes.pop(request.goal.session_id, None)
        if home is not None:
            return (f'The node {home} has the conversation {request.goal.session_id} and has not '
                    f'been active for {self._find_timeout:g} s; begin the conversation again.')
        there = ', '.join(f'{name} is {member.seen.state}'
                          for name, member in sorted(self._members.items()))
        what = f'with the model {request.model}' if request.model else 'for it'
        return (f'No node {what} was active within {self._find_timeout:g} s. '
                f'{there or "None is in the ROS graph"}.')

    def _suits(self, member: FleetMember, request: FleetRequest) -> bool:
        session = request.goal.session_id
        return (member.is_able and member.name not in request.failed_at
                and self._homes.get(session, member.name) == member.name
                and request.model in ('', member.seen.status.model))

    def _send_waiting(self) -> None:
        """Give waiting requests to nodes in their order, each to who will have answered it first.

        Where that node is busy it waits on: who is sent nothing loses nothing when it leaves.
        """
        ahead = {member: member.load for member in self._members.values()
                 if member.is_able and not member.has_refused}
        for request in list(self._waiting):
            if not any(member.has_room(request.goal.priority) for member in ahead):
                return
            suitable = [member for member in ahead if self._suits(member, request)]
            if suitable and request.goal.session_id not in self._talking:
                member = first_to_answer(suitable, ahead, request.goal)
                ahead[member] += 1
                if member.has_room(request.goal.priority):
                    self._waiting.remove(request)
                    self._send(request, member)

    def _send(self, request: FleetRequest, member: FleetMember) -> None:
        goal, session = request.goal, request.goal.session_id
        if request.ends_at < math.inf:
            goal.deadline = max(request.ends_at - time.monotonic(), 1e-3)
        if session:
            self._talking.add(session)
        request.member, request.text, request.asked = member, '', member.seen.status.model
        member.requests[request] = goal.priority
        request.pending = member.client.send(
            goal, on_text=partial(self._take_text, request, request.attempt),
            on_done=lambda pending, attempt=request.attempt: self._post(
                self._ended, request, attempt, pending))

    def _take_text(self, request: FleetRequest, attempt: int, text: str) -> None:
        if request.attempt != attempt:
            return
        request.text += text
        if request.whole:
            return
        if not request.text.startswith(request.shown[:len(request.text)]):
            request.pending.cancel()
            self._fail(request, NodeLostError(
                f'A node has left within its answer, and {request.member.name} does not answer as '
                'it began.'))
        elif new := request.text[len(request.shown):]:
            request.shown, request.model = request.text, request.asked
            request.answer.add(new)

    def _ended(self, request: FleetRequest, attempt: int, pending: PendingAnswer) -> None:
        if request.attempt != attempt:
            return      # it was moved meanwhile
        member, session = request.member, request.goal.session_id
        self._leave(request)
        member.refused_at = 0.0
        try:
            answer = pending.result(0)
        except Exception as error:
            self._failed(request, member, error)
            return
        if session and answer.finish_reason in (FinishReason.STOP, FinishReason.LENGTH):
            self._homes[session] = member.name
            self._homes.move_to_end(session)
            while len(self._homes) > MOST_SESSIONS:
                self._homes.popitem(last=False)
        self._forget(request)
        request.answer.complete(answer)

    def _failed(self, request: FleetRequest, member: FleetMember, error: Exception) -> None:
        code = getattr(error, 'code', None)
        if isinstance(error, NodeLostError):
            request.lost += 1
            member.seen.status_at = -math.inf     # until it, or another in its place, says more
            if self._homes.get(request.goal.session_id) == member.name:
                del self._homes[request.goal.session_id]
                error = NodeLostError(f'{error} It had the conversation '
                                      f'{request.goal.session_id}; begin that again.')
            elif self._again(request):
                return
        elif code in NOT_NOW and self._again(request):
            member.refused_at = time.monotonic()
            return
        elif code in FAULTS:
            request.failed_at.add(member.name)
            if any(self._suits(each, request) for each in self._members.values()) and (
                    self._again(request)):
                return
        self._fail(request, error)

    def _again(self, request: FleetRequest) -> bool:
        """Let a request wait for another node, where it may; returns whether it does."""
        if request.answer.cancel_wanted or not request.may_be_sent_again:
            return False
        self._wait(request)
        return True

    def _move(self, request: FleetRequest) -> None:
        """Take a request from a node that says nothing, or is not active any more, to another."""
        member = request.member
        elsewhere = any(self._suits(each, request) for each in self._members.values())
        if elsewhere and request.may_be_sent_again and not request.answer.cancel_wanted:
            request.lost += member.seen.state == 'silent'
            request.pending.cancel()
            self._leave(request)
            self._wait(request)

    def _cancel_now(self, request: FleetRequest) -> None:
        if request.member is not None:
            request.pending.cancel()
        elif request.answer in self._requests:
            self._forget(request)
            request.answer.cancel_unsent()

    def _fail(self, request: FleetRequest, error: Exception) -> None:
        self._forget(request)
        request.answer.fail(error)

    def _leave(self, request: FleetRequest) -> None:
        """Take a request from its node; what still comes from there is not heard."""
        request.attempt += 1
        if request.member is not None:
            request.member.requests.pop(request, None)
            self._talking.discard(request.goal.session_id)
            request.member = None

    def _forget(self, request: FleetRequest) -> None:
        with self._lock:
            self._requests.pop(request.answer, None)
        self._leave(request)
        if request in self._waiting:
            self._waiting.remove(request)
