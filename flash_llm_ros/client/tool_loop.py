"""Model, call, result, model: until there is an answer, or time or calls are used up."""

from collections.abc import Callable
from dataclasses import dataclass
import time
from typing import Any

from flash_llm_msgs.msg import ChatMessage, ToolCall
from flash_llm_ros.client.answer import Answer, AnswerError
from flash_llm_ros.client.flash_llm_client import FlashLlmClient
from flash_llm_ros.client.toolbox import Toolbox
from flash_llm_ros.finish_reason import FinishReason
from flash_llm_ros.store.errors import ErrorCode


@dataclass(frozen=True)
class ToolRun:
    """The answer behind the last call, and what was done before: calls and their results."""

    answer: Answer
    done: tuple[tuple[ToolCall, str], ...]


def run_tools(
    llm: FlashLlmClient,
    tools: Toolbox,
    prompt: str,
    *,
    deadline: float,
    most_calls: int = 8,
    may: Callable[[ToolCall], bool] = lambda call: True,
    session_id: str = '',
    **options: Any,
) -> ToolRun:
    """Let the model answer, with the tools' help; waits for it, as ``generate`` does.

    ``deadline`` in seconds, for all of it: TimeoutError behind it, and an action is cancelled.
    After ``most_calls`` the model may only answer; what it asks for then is not done. ``may`` is
    asked before each call, in this thread: a person, say, or a look at the battery; False is told
    the model. With a ``session_id`` only what is new is computed. Other ``options`` and errors as
    of ``generate``.
    """
    limit = time.monotonic() + deadline
    turns: list[Any] = [('user', prompt)]       # that the node has not seen
    said: list[Any] = []
    done: list[tuple[ToolCall, str]] = []

    def too_late() -> TimeoutError:
        return TimeoutError(f'The deadline of {deadline:g} s has passed after {len(done)} calls.')

    def left() -> float:
        if (seconds := limit - time.monotonic()) > 0:
            return seconds
        raise too_late()

    while True:
        said += turns
        try:
            answer = llm.generate(
                messages=turns if session_id else said, session_id=session_id, tools=tools.tools,
                tool_choice='auto' if len(done) < most_calls else 'none', deadline=left(),
                **options)
        except AnswerError as error:
            raise too_late() if error.code is ErrorCode.DEADLINE else error from None
        if answer.finish_reason is FinishReason.DEADLINE:
            raise too_late()
        if not answer.tool_calls or len(done) >= most_calls:
            return ToolRun(answer, tuple(done))
        turns = []
        for call in answer.tool_calls:
            result = (tools.call(call, left()) if len(done) < most_calls and may(call) else
                      '{"error": "It was not allowed."}')
            done.append((call, result))
            turns.append(ChatMessage(role='tool', content=result, tool_call_id=call.id,
                                     name=call.name))
        said.append(answer.message)
