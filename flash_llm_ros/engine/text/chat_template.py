"""From a request's text to the text that the model reads."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import groupby
import time
from typing import Any

from flash_llm_ros.engine.text.bounded_template import BoundedTemplate
from flash_llm_ros.engine.text.call_format import (
    HERMES,
    CallFormat,
    call_format,
    instructions,
    response,
    unknown_format,
)
from flash_llm_ros.engine.text.tools import Tool, ToolCall, check_calls
from flash_llm_ros.store.errors import ErrorCode, FlashLlmError

# Longer prompts are refused without tokenising them: few tokens have more characters.
_CHARACTERS_PER_TOKEN = 64

ROLES = ('system', 'user', 'assistant', 'tool')


@dataclass(frozen=True)
class Message:
    """One turn of a conversation; checked by `check_messages`."""

    role: str
    content: str
    tool_calls: tuple[ToolCall, ...] = ()   # of an assistant: what it asked for
    tool_call_id: str = ''                  # of a tool: the call whose result the content is
    name: str = ''                          # of a tool: which one

    @property
    def mapping(self) -> dict[str, Any]:
        """As chat templates read it: without what it does not have."""
        more = {'tool_calls': [call.function for call in self.tool_calls],
                'tool_call_id': self.tool_call_id, 'name': self.name}
        return {'role': self.role, 'content': self.content,
                **{key: value for key, value in more.items() if value}}

    @property
    def texts(self) -> dict[str, str]:
        """What a template may show of it, but the arguments of calls, by the fields' names."""
        return {'content': self.content, 'tool_call_id': self.tool_call_id, 'name': self.name,
                **{f'tool_calls[{index}].{name}': getattr(call, name)
                   for index, call in enumerate(self.tool_calls) for name in ('id', 'name')}}


# What a template is tried with.
_QUESTION = Message('user', 'x')
_TOOL = Tool('a-tool', '')


class ChatTemplate:
    """The model's own chat template, in a sandbox with bounds; without one messages are joined."""

    def __init__(self, source: str, special_tokens: Mapping[str, str] = {},
                 clock: Callable[[], float] = time.time) -> None:
        """`special_tokens`: bos_token and others by these names; `clock`: seconds since 1970."""
        self._constants = {**special_tokens, 'add_generation_prompt': True, 'documents': None}
        self._source = source
        try:
            self._template = BoundedTemplate(source, clock) if source else None
        except Exception as error:      # of Jinja, and of Python, which compiles what Jinja makes
            raise FlashLlmError(ErrorCode.STORE_CORRUPT,
                                f'chat_template.jinja cannot be used: {error}.') from None

    @property
    def is_there(self) -> bool:
        """False where messages are only joined."""
        return self._template is not None

    def calls(self) -> CallFormat:
        """How the model writes tool calls; raises FlashLlmError(INVALID_REQUEST)."""
        return self._own_format or HERMES

    def render(self, messages: Sequence[Message], tools: Sequence[Tool] = ()) -> str:
        """A conversation and the beginning of the next answer.

        A template without tools is given them in the system prompt, calls and results as text.
        Raises FlashLlmError(INVALID_REQUEST) when the template refuses the messages.
        """
        if 'tool_calls' not in self._source or not self._shows_tools:
            messages = [self._with_calls_as_text(message) for message in messages]
        functions = [tool.function for tool in tools] or None
        if functions and self._own_format is None:
            messages, functions = _with_instructions(messages, tools, self._takes_system), None
        try:
            return self._rendered(messages, functions)
        except Exception as error:      # a template can fail in any way Python code can
            raise FlashLlmError(ErrorCode.INVALID_REQUEST,
                                f'The chat template refused the messages: {error}.') from None

    def _rendered(self, messages: Sequence[Message],
                  functions: list[dict[str, Any]] | None = None) -> str:
        """Raises whatever a template does."""
        if self._template is None:
            return '\n\n'.join(message.content for message in messages)
        return self._template.render([message.mapping for message in messages], functions,
                                     **self._constants)

    def _attempt(self, messages: Sequence[Message], tools: Sequence[Tool] = ()) -> str | None:
        """None where the template refuses the messages."""
        try:
            return self._rendered(messages, [tool.function for tool in tools] or None)
        except Exception:
            return None

    @cached_property
    def _shows_tools(self) -> bool:
        """Whether the model reads of the tools that the template is given."""
        shown = self._attempt([_QUESTION], [_TOOL])
        return 'tools' in self._source and (shown is None or _TOOL.name in shown)

    @cached_property
    def _takes_system(self) -> bool:
        """Whether it has a place for a system prompt."""
        prompt = Message('system', 'a-system')
        return prompt.content in (self._attempt([prompt, _QUESTION]) or '')

    @cached_property
    def _own_format(self) -> CallFormat | None:
        """Of calls; None where it shows no tools.

        Raises FlashLlmError(INVALID_REQUEST) for one that is not known, or not written as it says.
        """
        if not self._shows_tools:
            return None
        found = call_format(self._source)
        call = ToolCall('123456789', 'a-call', '{}')
        written = self._attempt([_QUESTION, Message('assistant', '', (call,))], [_TOOL]) or ''
        if call.name in written and found.own.head(call) not in written:
            raise unknown_format()
        return found

    def _with_calls_as_text(self, message: Message) -> Message:
        """For a template that would leave out what an earlier answer asked for."""
        if not message.tool_calls:
            return message
        calls = map(self.calls().own.written, message.tool_calls)
        return Message(message.role, '\n'.join(filter(None, (message.content, *calls))))

    def render_next(self, messages: Sequence[Message], system_prompt: str,
                    tools: Sequence[Tool] = ()) -> str:
        """What comes after an answer when a conversation goes on with these messages.

        Raises FlashLlmError(INVALID_REQUEST) when the template refuses them.
        """
        answer = 'the-answer-stands-here'
        while any(answer in text for text in (system_prompt, *(m.content for m in messages))):
            answer += '-'
        before = [*system_message(system_prompt), Message('user', 'x'),
                  Message('assistant', answer)]
        _, found, after = self.render([*before, *messages], tools).partition(answer)
        if not found:
            raise FlashLlmError(ErrorCode.INVALID_REQUEST,
                                'The chat template leaves answers out: no session can go on.')
        return after


def system_message(system_prompt: str) -> list[Message]:
    """A system prompt as the messages it is: one, or none."""
    return [Message('system', system_prompt)] if system_prompt else []


def _with_instructions(messages: Sequence[Message], tools: Sequence[Tool],
                       takes_system: bool) -> list[Message]:
    """For a template that knows neither tools nor their results, nor, it may be, a system."""
    own = bool(messages) and messages[0].role == 'system'
    told: list[Message] = []
    for are_results, turns in groupby(messages[own:], lambda message: message.role == 'tool'):
        if are_results:
            turns = [Message('user', '\n'.join(response(turn.content) for turn in turns))]
        told += turns
    prompt = '\n\n'.join([*(message.content for message in messages[:own]), instructions(tools)])
    if takes_system:
        return [Message('system', prompt), *told]
    return [replace(told[0], content=f'{prompt}\n\n{told[0].content}'), *told[1:]]


def check_messages(messages: Sequence[Message], context: int) -> None:
    """Raise FlashLlmError(INVALID_REQUEST, EMPTY_PROMPT and those of `check_text`)."""
    if len(messages) > context:
        raise FlashLlmError(ErrorCode.PROMPT_TOO_LONG,
                            f'messages has {len(messages)} entries; a context of {context} tokens '
                            f'takes at most {context}.')
    characters = sum(len(text) for message in messages for text in (
        *message.texts.values(), *(call.arguments for call in message.tool_calls)))
    if characters > context * _CHARACTERS_PER_TOKEN:
        raise FlashLlmError(ErrorCode.PROMPT_TOO_LONG,
                            f'messages have {characters} characters; a context of {context} '
                            f'tokens takes at most {context * _CHARACTERS_PER_TOKEN}.')
    for index, message in enumerate(messages):
        field = f'messages[{index}]'
        if message.role not in ROLES:
            raise FlashLlmError(ErrorCode.INVALID_REQUEST, f'{field}.role is {message.role!r}; '
                                f'it must be one of {", ".join(ROLES)}.')
        for name, text in message.texts.items():
            check_text(f'{field}.{name}', text, context)
        check_calls(field, message.tool_calls)
        if message.tool_calls and message.role != 'assistant':
            raise FlashLlmError(ErrorCode.INVALID_REQUEST, f'{field} has tool_calls and the role '
                                f'{message.role}; those of an assistant may have them.')
        if not message.content.strip() and not message.tool_calls and message.role != 'tool':
            raise FlashLlmError(ErrorCode.EMPTY_PROMPT,
                                f'{field}.content is empty; it must hold some text.')
    if messages[-1].role not in ('user', 'tool'):
        raise FlashLlmError(ErrorCode.INVALID_REQUEST,
                            f'messages[{len(messages) - 1}].role is {messages[-1].role}; the last '
                            'message must be from the user (or a tool), to be answered.')


def check_text(field: str, text: str, context: int) -> None:
    """Raise FlashLlmError(INVALID_TEXT or PROMPT_TOO_LONG) for text no model should see."""
    for character, what in (('\0', 'a NUL character'),
                            ('\ufffd', 'U+FFFD, which stands for bytes that are no UTF-8')):
        if (at := text.find(character)) >= 0:
            raise FlashLlmError(ErrorCode.INVALID_TEXT,
                                f'{field} holds {what} at character {at}; it must be plain text.')
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise FlashLlmError(ErrorCode.INVALID_TEXT,
                            f'{field} is not valid UTF-8 at character {error.start}.') from None
    if len(text) > context * _CHARACTERS_PER_TOKEN:
        raise FlashLlmError(ErrorCode.PROMPT_TOO_LONG,
                            f'{field} has {len(text)} characters; a context of {context} tokens '
                            f'takes at most {context * _CHARACTERS_PER_TOKEN}.')
