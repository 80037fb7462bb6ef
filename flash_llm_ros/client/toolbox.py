"""Does what a model asks for: of what is on its list, and nothing else."""

from collections.abc import Callable, Iterable
import json
import threading
import time
from typing import Any

from action_msgs.msg import GoalStatus
from rclpy.action import ActionClient
from rclpy.action.client import ClientGoalHandle
from rclpy.qos import QoSProfile
from rclpy.task import Future

from flash_llm_msgs.msg import Tool, ToolCall
from flash_llm_ros.client.messages import message_from
from flash_llm_ros.client.own_node import OwnNode
from flash_llm_ros.client.robot_tool import RobotTool

MOST_CHARACTERS = 2_000     # of a result that the model is told
_CLOSED = 'The toolbox was closed, or its thread has ended.'
_POLL = 0.05                # s
_PATIENCE = 2.0             # s, for the word that an action is cancelled
_ENDS = {GoalStatus.STATUS_SUCCEEDED: 'succeeded', GoalStatus.STATUS_CANCELED: 'canceled',
         GoalStatus.STATUS_ABORTED: 'aborted'}


class Toolbox:
    """Tools with a node and a thread of their own; a context manager.

    >>> with FlashLlmClient() as llm, Toolbox([
    ...         RobotTool('lamp', 'Switches the lamp.', SetBool, '/lamp')]) as tools:
    ...     print(run_tools(llm, tools, 'Light, please!', deadline=30.0).answer)
    """

    def __init__(self, tools: Iterable[RobotTool], *, domain_id: int | None = None) -> None:
        listed = list(tools)
        self.tools: list[Tool] = [tool.message for tool in listed]      # for a request; may raise
        self._calling, self._closing = threading.Lock(), threading.Event()
        self._closed = False
        self._does: dict[str, _Action | _Service | _Topic] = {}
        self._own = OwnNode('flash_llm_tools', domain_id, lambda why: self._closing.set())
        try:
            for tool in listed:
                kind = _Action if hasattr(tool.kind, 'Goal') else (
                    _Service if hasattr(tool.kind, 'Request') else _Topic)
                self._does[tool.name] = kind(tool, self._own, self._closing)
        except BaseException:       # two of a name in the graph, but not of a type
            self.close()
            raise

    def __enter__(self) -> 'Toolbox':
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """End a call that another thread waits for, cancel its action, and leave the graph."""
        self._closing.set()
        with self._calling:
            if self._closed:
                return
            self._closed = True
            self._own.stop()
            for does in self._does.values():
                does.close()
            self._own.destroy()

    def call(self, call: ToolCall, timeout: float) -> str:
        """Do it, and return what came of it, as JSON: the content of a message of the role tool.

        What goes wrong is such a result, too ({"error": ...}), as the model may know what to do;
        ``timeout`` in seconds, or the tool's own where that is shorter; one call at a time.
        ValueError for a tool that is not on the list: nothing was done. RuntimeError once closed.
        """
        if call.name not in self._does:
            raise ValueError(f'{call.name!r} is not on the list of tools: '
                             f'{", ".join(self._does)}.')
        with self._calling:
            if self._closed:
                raise RuntimeError(_CLOSED)
            try:
                found = self._does[call.name](call.arguments, timeout)
            except (TimeoutError, ValueError) as error:
                found = {'error': str(error)}
        # What is no text in a message of the robot must not be one in a request, either.
        text = json.dumps(found, ensure_ascii=False).encode(errors='replace').decode().replace(
            '\ufffd', '?')
        return text if len(text) <= MOST_CHARACTERS else f'{text[:MOST_CHARACTERS]} ...'


class _Does:
    """Of one tool; called from any thread but the node's own."""

    def __init__(self, tool: RobotTool, own: OwnNode, closing: threading.Event) -> None:
        self._tool, self._own, self._closing = tool, own, closing

    def _wait_for(self, is_ready: Callable[[], bool], limit: float) -> None:
        while not is_ready():
            self._check(limit, 'is not there')
            time.sleep(_POLL)

    def _check(self, limit: float, what: str) -> None:
        if self._closing.is_set():
            raise RuntimeError(_CLOSED)
        if time.monotonic() > limit:
            raise TimeoutError(f'{self._tool.where} {what}.')

    def _result(self, send: Callable[..., Future], *arguments: Any, limit: float) -> Any:
        """Of a request that is sent in the thread that takes the answers, as rclpy needs it."""
        return self._await(self._await(self._send(send, *arguments), limit), limit)

    def _send(self, send: Callable[..., Future], *arguments: Any) -> Future:
        return self._own.executor.create_task(send, *arguments)

    def _await(self, future: Future, limit: float) -> Any:
        done = threading.Event()
        future.add_done_callback(lambda _: done.set())
        while not done.wait(_POLL):
            self._check(limit, 'has not ended in time')
        return future.result()


class _Action(_Does):
    def __init__(self, tool: RobotTool, own: OwnNode, closing: threading.Event) -> None:
        super().__init__(tool, own, closing)
        self._client = ActionClient(own.node, tool.kind, tool.where)

    def __call__(self, arguments: str, timeout: float) -> dict[str, Any]:
        goal = message_from(self._tool.kind.Goal, arguments)
        limit = time.monotonic() + min(timeout, self._tool.timeout)
        self._wait_for(self._client.server_is_ready, limit)
        sent = self._send(self._client.send_goal_async, goal)
        try:
            handle = self._await(self._await(sent, limit), limit)
            if not handle.accepted:
                return {'error': 'The goal was rejected.'}
            ended = self._result(handle.get_result_async, limit=limit)
        except BaseException:       # nobody waits for it any more: it shall not go on
            cancelled = threading.Event()
            sent.add_done_callback(lambda sent: sent.result().add_done_callback(
                lambda accepted: _cancel(accepted.result(), cancelled)))
            cancelled.wait(_PATIENCE)
            raise
        return {'status': _ENDS.get(ended.status, 'unknown'), 'result': _plain(ended.result)}

    def close(self) -> None:
        self._client.destroy()


def _cancel(handle: ClientGoalHandle, cancelled: threading.Event) -> None:
    if handle.accepted:
        handle.cancel_goal_async().add_done_callback(lambda _: cancelled.set())


class _Service(_Does):
    def __init__(self, tool: RobotTool, own: OwnNode, closing: threading.Event) -> None:
        super().__init__(tool, own, closing)
        self._client = own.node.create_client(tool.kind, tool.where)

    def __call__(self, arguments: str, timeout: float) -> dict[str, Any]:
        request = message_from(self._tool.kind.Request, arguments)
        limit = time.monotonic() + min(timeout, self._tool.timeout)
        self._wait_for(self._client.service_is_ready, limit)
        return _plain(self._result(self._client.call_async, request, limit=limit))

    def close(self) -> None:
        self._own.node.destroy_client(self._client)


class _Topic(_Does):
    def __init__(self, tool: RobotTool, own: OwnNode, closing: threading.Event) -> None:
        super().__init__(tool, own, closing)
        self._publisher = own.node.create_publisher(tool.kind, tool.where, QoSProfile(depth=10))

    def __call__(self, arguments: str, timeout: float) -> dict[str, Any]:
        message = message_from(self._tool.kind, arguments)
        self._wait_for(lambda: self._publisher.get_subscription_count() > 0,
                       time.monotonic() + min(timeout, self._tool.timeout))
        self._publisher.publish(message)
        return {'published': True}

    def close(self) -> None:
        self._own.node.destroy_publisher(self._publisher)


def _plain(value: Any) -> Any:
    """A message as JSON has it."""
    if hasattr(value, 'get_fields_and_field_types'):
        return {name: _plain(getattr(value, name)) for name in value.get_fields_and_field_types()}
    if isinstance(value, bytes):
        return value[0] if len(value) == 1 else list(value)
    value = value.tolist() if hasattr(value, 'tolist') else value       # of arrays
    if isinstance(value, bool | int | float | str):
        return value
    return [_plain(item) for item in value[:MOST_CHARACTERS]]
