"""For programs that want answers: ``FlashLlmClient`` and what it returns and raises."""

from flash_llm_ros.client.answer import Answer, AnswerError, NodeLostError, PendingAnswer
from flash_llm_ros.client.flash_llm_client import FlashLlmClient
from flash_llm_ros.client.fleet import FlashLlmFleet
from flash_llm_ros.client.messages import message_from
from flash_llm_ros.finish_reason import FinishReason
from flash_llm_ros.store.errors import ErrorCode

__all__ = ['Answer', 'AnswerError', 'ErrorCode', 'FinishReason', 'FlashLlmClient', 'FlashLlmFleet',
           'NodeLostError', 'PendingAnswer', 'message_from']
