"""An answer of the node as OpenAI's interface has it: whole, or chunk by chunk."""

import time
from typing import Any
import uuid

from flash_llm_ros.client import Answer, AnswerError, PendingAnswer
from flash_llm_ros.finish_reason import FinishReason
from flash_llm_ros.serve.api_error import from_outcome
from flash_llm_ros.store.errors import ErrorCode


def answer_of(pending: PendingAnswer) -> tuple[Answer, str]:
    """Return an answer that is here and OpenAI's finish reason; ApiError where there is none.

    What had to end before it was done, by its deadline, too, is a 'length', and so is an answer
    that does not do yet what its constraint says: clients of this interface look for that.
    """
    try:
        answer = pending.result(0)
    except AnswerError as error:
        if error.code != ErrorCode.CONSTRAINT_UNMET:
            raise from_outcome(error) from None
        return error.answer, 'length'
    except Exception as error:
        raise from_outcome(error) from None
    if answer.tool_calls:
        return answer, 'tool_calls'
    return answer, 'stop' if answer.finish_reason == FinishReason.STOP else 'length'


class ChatAnswer:
    """The objects of one answer, which have a name and a time in common."""

    def __init__(self, model: str) -> None:
        self._head = {'id': f'chatcmpl-{uuid.uuid4().hex}', 'created': int(time.time()),
                      'model': model}

    def whole(self, answer: Answer, reason: str) -> dict[str, Any]:
        """Return a chat.completion."""
        message = {'role': 'assistant', 'content': answer.text, 'refusal': None}
        if answer.tool_calls:
            message |= {'content': answer.text or None, 'tool_calls': _calls(answer)}
        return {**self._head, 'object': 'chat.completion', 'usage': usage(answer), 'choices': [
            {'index': 0, 'message': message, 'logprobs': None, 'finish_reason': reason}]}

    def chunk(self, delta: dict[str, Any], reason: str | None = None) -> dict[str, Any]:
        """Return a chat.completion.chunk with more of the message."""
        return {**self._head, 'object': 'chat.completion.chunk', 'choices': [
            {'index': 0, 'delta': delta, 'logprobs': None, 'finish_reason': reason}]}

    def calls_chunk(self, answer: Answer) -> dict[str, Any]:
        """Return the chunk with the calls, which come whole, behind the text."""
        return self.chunk({'tool_calls': [
            {'index': index, **call} for index, call in enumerate(_calls(answer))]})

    def usage_chunk(self, answer: Answer) -> dict[str, Any]:
        """Return the chunk that says what the answer took."""
        return {**self._head, 'object': 'chat.completion.chunk', 'choices': [],
                'usage': usage(answer)}


def _calls(answer: Answer) -> list[dict[str, Any]]:
    return [{'id': call.id, 'type': 'function',
             'function': {'name': call.name, 'arguments': call.arguments}}
            for call in answer.tool_calls]


def usage(answer: Answer) -> dict[str, Any]:
    """Return what it took, in tokens."""
    stats = answer.stats
    return {'prompt_tokens': stats.prompt_tokens, 'completion_tokens': stats.generated_tokens,
            'total_tokens': stats.prompt_tokens + stats.generated_tokens,
            'prompt_tokens_details': {'cached_tokens': stats.cached_tokens}}
