"""The service ~/tokenize: how many tokens of the context a text takes."""

from collections.abc import Callable

from rclpy.callback_groups import MutuallyExclusiveCallbackGroup
from rclpy.node import Node

from flash_llm_msgs.srv import Tokenize as TokenizeService
from flash_llm_ros.engine.text.chat_template import check_text
from flash_llm_ros.node.interfaces.conversions import error_message
from flash_llm_ros.node.work.worker import Worker
from flash_llm_ros.store.errors import ErrorCode, FlashLlmError


class Tokenize:
    """Answers in every state in which the store is open, also while the engine works."""

    def __init__(self, node: Node, current_worker: Callable[[], Worker | None]) -> None:
        self._current_worker = current_worker
        node.create_service(
            TokenizeService, '~/tokenize', self._answer,
            callback_group=MutuallyExclusiveCallbackGroup())

    def _answer(
        self, ask: TokenizeService.Request, response: TokenizeService.Response,
    ) -> TokenizeService.Response:
        try:
            worker = self._current_worker()
            if worker is None:
                raise FlashLlmError(
                    ErrorCode.NOT_ACTIVE, 'The node has no store open; configure it first.')
            check_text('text', ask.text, worker.engine.config.context_length)
            response.tokens = worker.engine.tokenize(ask.text)
        except FlashLlmError as error:
            response.error = error_message(error)
        return response
