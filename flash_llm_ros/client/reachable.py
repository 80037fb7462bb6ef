"""Whether an answer can come to a node of ours at all, and whether a thread may wait for it."""

import sys

from rclpy.exceptions import InvalidHandle
from rclpy.executors import MultiThreadedExecutor
from rclpy.node import Node


def why_gone(node: Node) -> str:
    """Return why nothing can come to this node any more, or ''."""
    if not node.context.ok():
        return 'rclpy was shut down; no answer can come.'
    try:
        with node.handle:
            return ''
    except InvalidHandle:
        return "The client's node was destroyed; no answer can come."


def is_in_executor(node: Node) -> bool:
    """Whether something may run its callbacks; not where its executor was shut down."""
    return node.executor is not None and node in node.executor.get_nodes()


def check_may_wait(node: Node, in_callback: bool) -> None:
    """Raise RuntimeError where waiting would keep the answer from coming.

    ``in_callback``: this thread is in a callback of the client's.
    """
    executor = node.executor
    if executor is None:
        raise RuntimeError(
            f'The node {node.get_name()} is in no executor, so that no answer can come; '
            'spin it in another thread, or use FlashLlmClient without a node.')
    if in_callback or (not isinstance(executor, MultiThreadedExecutor)
                       and _runs_this_thread(executor)):
        raise RuntimeError(
            'Waiting for an answer in a callback of the executor that has to bring it; use '
            'start() with on_done, or a MultiThreadedExecutor.')


def _runs_this_thread(executor: object) -> bool:
    frame = sys._getframe()
    while frame is not None:
        if frame.f_locals.get('self') is executor:
            return True
        frame = frame.f_back
    return False
