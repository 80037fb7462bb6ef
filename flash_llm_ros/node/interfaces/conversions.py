"""Between the messages of flash_llm_msgs and the engine's types."""

from collections.abc import Iterator
from contextlib import contextmanager
import math

from flash_llm_msgs.action import GenerateText as GenerateTextAction
from flash_llm_msgs.msg import (
    ChatMessage,
    EngineError,
    GenerationStats,
    OutputConstraint,
    TokenChunk,
)
from flash_llm_msgs.msg import Tool as ToolMessage
from flash_llm_msgs.msg import ToolCall as ToolCallMessage
from flash_llm_msgs.srv import GenerateText as GenerateTextService
from flash_llm_ros.engine import (
    Constraint,
    ConstraintKind,
    GenerationRequest,
    Message,
    SamplingParams,
    Tool,
    ToolCall,
)
from flash_llm_ros.node.interfaces.interface_schema import interface_outline, interface_schema
from flash_llm_ros.node.work.request import Chunk, Outcome
from flash_llm_ros.store.errors import ErrorCode, FlashLlmError

Ask = GenerateTextAction.Goal | GenerateTextService.Request
Answer = GenerateTextAction.Result | GenerateTextService.Response
LONGEST_DEADLINE = 1e6  # s


def generation_request(ask: Ask, *, max_tokens: int, system_prompt: str) -> GenerationRequest:
    """Return what the engine is asked; the keywords stand in for what the message leaves open.

    Raises FlashLlmError(INVALID_SAMPLING, INVALID_CONSTRAINT and others), naming the field.
    """
    sampling = ask.sampling
    messages = tuple(map(_chat_message, ask.messages))
    has_own = ask.system_prompt or ask.raw or (messages and messages[0].role == 'system')
    return GenerationRequest(
        prompt=ask.prompt,
        messages=messages,
        system_prompt=ask.system_prompt if has_own else system_prompt,
        keep_system_prompt=bool(system_prompt and not has_own),
        raw=ask.raw,
        session_id=ask.session_id,
        drop_oldest_turns=ask.drop_oldest_turns,
        sampling=SamplingParams(
            temperature=sampling.temperature,
            top_k=sampling.top_k,
            top_p=sampling.top_p,
            min_p=sampling.min_p,
            repetition_penalty=sampling.repetition_penalty,
            seed=sampling.seed),
        max_tokens=sampling.max_tokens or max_tokens,
        stop=tuple(sampling.stop),
        constraint=_constraint(ask.constraint),
        tools=tuple(_tool(index, tool) for index, tool in enumerate(ask.tools)),
        tool_choice=ask.tool_choice or 'auto')


def forget_texts(ask: Ask) -> None:
    """Empty every field of a request that can be long."""
    for part in (ask, ask.sampling, ask.constraint):
        for name in part.get_fields_and_field_types():
            value = getattr(part, name)
            if isinstance(value, str | list):
                setattr(part, name, type(value)())


def _chat_message(message: ChatMessage) -> Message:
    return Message(message.role, message.content,
                   tuple(ToolCall(call.id, call.name, call.arguments)
                         for call in message.tool_calls), message.tool_call_id, message.name)


def _tool(index: int, message: ToolMessage) -> Tool:
    name, description, field = message.name, message.description, f'tools[{index}]'
    if message.interface and not message.parameters:
        with _telling(f'{field}.interface'):
            return Tool(name, description, interface_schema(message.interface, message.bounds),
                        interface_outline(message.interface, message.bounds))
    if message.interface or message.bounds:
        raise FlashLlmError(
            ErrorCode.INVALID_REQUEST, f'{field} ({name}) has parameters and an interface, or '
            'bounds without an interface; a tool has parameters, or an interface and its bounds.')
    return Tool(name, description, message.parameters)


@contextmanager
def _telling(field: str) -> Iterator[None]:
    try:
        yield
    except FlashLlmError as error:
        raise FlashLlmError(error.code, f'{field}: {error}') from None


def _constraint(message: OutputConstraint) -> Constraint | None:
    kind, text, choices = message.kind, message.text, tuple(message.choices)
    if kind == OutputConstraint.INTERFACE:
        with _telling('constraint'):
            kind, text = ConstraintKind.JSON_SCHEMA, interface_schema(text, message.bounds)
    elif message.bounds:
        raise FlashLlmError(
            ErrorCode.INVALID_CONSTRAINT, f'constraint.kind is {kind}, but bounds are given, which '
            'belong to an INTERFACE (5).')
    if kind != OutputConstraint.NONE:
        return Constraint(kind, text, choices)
    if text or choices:
        raise FlashLlmError(
            ErrorCode.INVALID_CONSTRAINT, 'constraint.kind is NONE (0), but text or choices are '
            'given; it has to say what they are.')
    return None


def deadline_seconds(ask: Ask, *, default: float) -> float:
    """Return the deadline in seconds from now; raises FlashLlmError(INVALID_REQUEST)."""
    if not (math.isfinite(ask.deadline) and 0 <= ask.deadline <= LONGEST_DEADLINE):
        raise FlashLlmError(
            ErrorCode.INVALID_REQUEST,
            f'deadline is {ask.deadline}; it has to be 0 (the node decides) or a number of '
            f'seconds up to {LONGEST_DEADLINE:g}.')
    return ask.deadline or default


def is_spoken(ask: Ask) -> bool:
    """Return whether its sentences go out; raises FlashLlmError(INVALID_REQUEST)."""
    if ask.speak and ask.constraint.kind != OutputConstraint.NONE:
        raise FlashLlmError(
            ErrorCode.INVALID_REQUEST, 'speak is true, and the answer has a constraint; only plain '
            'text is spoken.')
    return ask.speak


def chunk_message(chunk: Chunk) -> TokenChunk:
    """Return the message of a chunk."""
    return TokenChunk(
        request_id=chunk.request_id, sequence=chunk.sequence, text=chunk.text,
        finish_reason=int(chunk.finish_reason), error=error_message(chunk.error),
        tool_calls=_calls(chunk.tool_calls))


def _calls(calls: tuple[ToolCall, ...]) -> list[ToolCallMessage]:
    return [ToolCallMessage(id=call.id, name=call.name, arguments=call.arguments)
            for call in calls]


def error_message(error: FlashLlmError | None) -> EngineError:
    """Return the message of an error; NONE for no error."""
    if error is None:
        return EngineError(code=EngineError.NONE)
    return EngineError(code=int(error.code), message=str(error))


def stats_message(outcome: Outcome) -> GenerationStats:
    """Return what a request cost; zeros where the engine never saw it."""
    own = ('queue_time', 'total_time', 'preemptions')
    stats = GenerationStats(**{name: getattr(outcome, name) for name in own})
    if outcome.cost is not None:
        for name in GenerationStats.get_fields_and_field_types():
            if name not in own:
                setattr(stats, name, getattr(outcome.cost, name))
    return stats


def fill_answer(answer: Answer, outcome: Outcome) -> Answer:
    """Fill an action's result or a service's response and return it."""
    answer.text = outcome.text
    answer.tool_calls = _calls(outcome.tool_calls)
    answer.finish_reason = int(outcome.finish_reason)
    answer.error = error_message(outcome.error)
    answer.stats = stats_message(outcome)
    return answer
