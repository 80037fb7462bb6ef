"""The service ~/reset_session: a conversation is forgotten."""

from collections.abc import Callable

from rclpy.callback_groups import MutuallyExclusiveCallbackGroup
from rclpy.node import Node

from flash_llm_msgs.srv import ResetSession as ResetSessionService
from flash_llm_ros.node.interfaces.conversions import error_message
from flash_llm_ros.node.work.worker import Worker
from flash_llm_ros.store.errors import ErrorCode, FlashLlmError


class ResetSession:
    """Takes effect at once; an answer that is under way goes on and is not remembered."""

    def __init__(self, node: Node, current_worker: Callable[[], Worker | None]) -> None:
        self._current_worker = current_worker
        node.create_service(
            ResetSessionService, '~/reset_session', self._answer,
            callback_group=MutuallyExclusiveCallbackGroup())

    def _answer(
        self, ask: ResetSessionService.Request, response: ResetSessionService.Response,
    ) -> ResetSessionService.Response:
        try:
            worker = self._current_worker()
            if worker is None or not worker.active:
                raise FlashLlmError(
                    ErrorCode.NOT_ACTIVE, 'The node is not active; configure and activate it.')
            response.sessions_reset = worker.engine.reset_session(ask.session_id)
        except FlashLlmError as error:
            response.error = error_message(error)
        return response
