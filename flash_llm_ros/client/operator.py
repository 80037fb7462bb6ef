"""Every interface of a running node, for its operators: the commands of `flash_llm`, and tests.

Programs that want answers use ``FlashLlmClient``.

Calls block the caller, not the executor, and raise TimeoutError.
"""

from collections.abc import Callable
from dataclasses import dataclass
import queue
import threading
import time

from action_msgs.msg import GoalStatus
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from lifecycle_msgs.srv import ChangeState, GetState
from rclpy.action import ActionClient
from rclpy.client import Client
from rclpy.qos import QoSProfile
from rclpy.task import Future
from std_msgs.msg import String

from flash_llm_msgs.action import GenerateText
from flash_llm_msgs.msg import EngineError, EngineStatus, TokenChunk
from flash_llm_msgs.srv import GenerateText as GenerateTextService
from flash_llm_ros.client.nodes_there import full_name
from flash_llm_ros.client.own_node import OwnNode
from flash_llm_ros.client.qos import CALLS, STATUS

POLL = 0.02  # s
CALL_TIMEOUT = 30.0  # s
GOAL_ID = 32        # characters; the node's own numbers are shorter
ANSWERED = (TokenChunk.STOP, TokenChunk.LENGTH)


@dataclass(frozen=True)
class Reply:
    """What came back for a prompt; ``text`` is empty unless the answer was finished."""

    text: str
    finish_reason: int
    error: EngineError


class Goal:
    """One goal of ~/generate, from sending to its result."""

    def __init__(
        self,
        client: 'OperatorClient',
        goal: GenerateText.Goal,
        on_chunk: Callable[[TokenChunk], None],
    ) -> None:
        self.chunks: list[TokenChunk] = []
        self._client = client
        self._on_chunk = on_chunk
        sent = client.start(client.generate.send_goal_async, goal, self._take)
        self._handle = client.wait(sent, CALL_TIMEOUT)
        self._result = client.start(self._handle.get_result_async)

    def _take(self, message: object) -> None:
        self.chunks.append(message.feedback.chunk)
        self._on_chunk(message.feedback.chunk)

    @property
    def done(self) -> bool:
        """Whether the result is here."""
        return self._result.done()

    def cancel(self) -> bool:
        """Ask the node to cancel it; returns whether the node agreed."""
        cancelled = self._client.start(self._handle.cancel_goal_async)
        return bool(self._client.wait(cancelled, CALL_TIMEOUT).goals_canceling)

    def result(self, timeout: float | None = None) -> tuple[int, GenerateText.Result]:
        """Return a constant of GoalStatus and the result; ``timeout`` in seconds, None: forever."""
        response = self._client.wait(self._result, timeout)
        return response.status, response.result


class OperatorClient:
    """Every interface of one node; a context manager. Threads other than its own may call it."""

    def __init__(
        self,
        node_name: str = 'flash_llm',
        *,
        domain_id: int | None = None,
        give_up: Callable[[], bool] = lambda: False,
    ) -> None:
        """``node_name`` may carry a namespace; ``give_up`` ends waiting, as the node is gone."""
        self.name = full_name(node_name)
        self._give_up = give_up
        self._own = OwnNode('flash_llm_operator', domain_id)
        self.node = self._own.node
        self.responses: queue.SimpleQueue[str] = queue.SimpleQueue()
        self.chunks: queue.SimpleQueue[TokenChunk] = queue.SimpleQueue()
        self.last_chunks: list[TokenChunk] = []
        self.diagnostics: list[DiagnosticArray] = []
        self.statuses: list[EngineStatus] = []
        subscribe = self.node.create_subscription
        # ~/status last: it is latched, so when it arrives the node knows the others, too.
        subscribe(String, f'{self.name}/response',
                  lambda message: self.responses.put(message.data), QoSProfile(depth=100))
        subscribe(TokenChunk, f'{self.name}/stream', self.chunks.put, QoSProfile(depth=1000))
        subscribe(DiagnosticArray, '/diagnostics', self.diagnostics.append, QoSProfile(depth=10))
        self.status_at = 0.0        # s of time.monotonic(), when the latest ~/status came
        subscribe(EngineStatus, f'{self.name}/status', self._take_status, STATUS)
        self._prompt = self.node.create_publisher(
            String, f'{self.name}/prompt', QoSProfile(depth=100))
        self._change_state = self.node.create_client(ChangeState, f'{self.name}/change_state')
        self._get_state = self.node.create_client(GetState, f'{self.name}/get_state')
        self._generate_text = self.node.create_client(
            GenerateTextService, f'{self.name}/generate_text', qos_profile=CALLS)
        self.generate = ActionClient(
            self.node, GenerateText, f'{self.name}/generate', goal_service_qos_profile=CALLS,
            result_service_qos_profile=CALLS, cancel_service_qos_profile=CALLS)

    def __enter__(self) -> 'OperatorClient':
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Leave the graph."""
        self._own.stop()
        self.generate.destroy()
        self._own.destroy()

    def until(self, condition: Callable[[], bool], timeout: float, what: str) -> None:
        """Return when the condition holds; TimeoutError names ``what`` was waited for."""
        limit = time.monotonic() + timeout
        while not condition():
            if self._give_up():
                raise ConnectionError('The process of the node has ended.')
            if time.monotonic() > limit:
                raise TimeoutError(f'Waited {timeout:g} s for {what} of {self.name}.')
            time.sleep(POLL)

    def start(self, send: Callable[..., Future], *arguments: object) -> Future:
        """Return the future of a request, sent in the thread that also takes the answers.

        Sent from elsewhere, an answer can come before rclpy's action client expects it; it is
        dropped then.
        """
        return self.wait(self._own.executor.create_task(send, *arguments), CALL_TIMEOUT)

    def wait(self, future: Future, timeout: float | None) -> object:
        """Return a future's result; ``timeout`` in seconds, None: as long as the node lives."""
        done = threading.Event()
        future.add_done_callback(lambda _: done.set())
        limit = None if timeout is None else time.monotonic() + timeout
        while not done.wait(0.2):
            if self._give_up():
                raise ConnectionError('The process of the node has ended.')
            if limit is not None and time.monotonic() > limit:
                raise TimeoutError(f'No answer from the node within {timeout:g} s.')
        return future.result()

    def wait_for_node(self, timeout: float) -> None:
        """Return when every interface of the node is connected; ``timeout`` in seconds."""
        self.until(lambda: bool(self.statuses), timeout, 'the first status')
        for client in (self._change_state, self._get_state, self._generate_text):
            self.until(client.service_is_ready, timeout, client.srv_name)
        self.until(self.generate.server_is_ready, timeout, 'the action')
        self.until(lambda: self._prompt.get_subscription_count() > 0, timeout, 'the prompt topic')

    def call(self, client: Client, request: object, timeout: float | None = CALL_TIMEOUT) -> object:
        """Call any service; ``timeout`` in seconds."""
        return self.wait(self.start(client.call_async, request), timeout)

    def transition(self, label: str, timeout: float | None = CALL_TIMEOUT) -> bool:
        """Ask for a lifecycle transition by its label, such as 'configure'."""
        request = ChangeState.Request()
        request.transition.label = label
        return self.call(self._change_state, request, timeout).success

    def state(self) -> str:
        """Return the label of the lifecycle state."""
        return self.call(self._get_state, GetState.Request()).current_state.label

    def _take_status(self, status: EngineStatus) -> None:
        self.status_at = time.monotonic()
        self.statuses.append(status)

    @property
    def status(self) -> EngineStatus:
        """The latest ~/status."""
        return self.statuses[-1]

    def memory_plan(self, timeout: float = 5.0) -> dict[str, tuple[int, str]]:
        """Return name -> (bytes, note) of the memory plan, from the next /diagnostics."""
        seen = len(self.diagnostics)
        self.until(lambda: len(self.diagnostics) > seen and self._plan_status() is not None,
                   timeout, 'the memory plan')
        plan = {}
        for entry in self._plan_status().values:
            amount, _, note = entry.value.partition(' B')
            plan[entry.key] = (int(amount), note.removeprefix('; '))
        return plan

    def _plan_status(self) -> DiagnosticStatus | None:
        for status in self.diagnostics[-1].status:
            if status.hardware_id == self.name and status.name.endswith(': memory plan'):
                return status
        return None

    def send_goal(
        self, goal: GenerateText.Goal, on_chunk: Callable[[TokenChunk], None] = lambda chunk: None,
    ) -> Goal:
        """Send a goal; every goal is accepted. ``on_chunk`` is called in the client's thread."""
        return Goal(self, goal, on_chunk)

    def generate_text(
        self, request: GenerateTextService.Request, timeout: float = CALL_TIMEOUT,
    ) -> GenerateTextService.Response:
        """Call the service."""
        return self.call(self._generate_text, request, timeout)

    def publish_prompt(self, prompt: str | bytes) -> None:
        """Publish on ~/prompt; bytes are a serialised message."""
        self._prompt.publish(prompt if isinstance(prompt, bytes) else String(data=prompt))

    def ask(self, prompt: str | bytes, timeout: float) -> Reply:
        """Publish a prompt and wait for what becomes of it; ``last_chunks`` are its chunks.

        Action goals may run meanwhile, but no other prompts or calls: those carry no name.
        """
        self._drain()
        self.last_chunks = []
        self.publish_prompt(prompt)
        limit = time.monotonic() + timeout
        try:
            reason = TokenChunk.RUNNING
            while reason == TokenChunk.RUNNING:
                chunk = self.chunks.get(timeout=max(limit - time.monotonic(), 0.0))
                if len(chunk.request_id) == GOAL_ID:
                    continue
                self.last_chunks.append(chunk)
                reason = chunk.finish_reason
            if reason not in ANSWERED:
                return Reply('', reason, chunk.error)
            return Reply(self.responses.get(timeout=CALL_TIMEOUT), reason, chunk.error)
        except queue.Empty:
            raise TimeoutError(f'No answer to a prompt within {timeout:g} s.') from None

    def _drain(self) -> None:
        for line in (self.chunks, self.responses):
            while not line.empty():
                line.get_nowait()


SUCCEEDED = GoalStatus.STATUS_SUCCEEDED
CANCELED = GoalStatus.STATUS_CANCELED
ABORTED = GoalStatus.STATUS_ABORTED
