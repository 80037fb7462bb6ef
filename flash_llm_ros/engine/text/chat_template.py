"""From a request's text to the text that the model reads."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
import time

from flash_llm_ros.engine.text.bounded_template import BoundedTemplate
from flash_llm_ros.store.errors import ErrorCode, FlashLlmError

# Longer prompts are refused without tokenising them: few tokens have more characters.
_CHARACTERS_PER_TOKEN = 64

ROLES = ('system', 'user', 'assistant', 'tool')


@dataclass(frozen=True)
class Message:
    """One turn of a conversation; checked by `check_messages`."""

    role: str
    content: str


class ChatTemplate:
    """The model's own chat template, in a sandbox with bounds; without one messages are joined."""

    def __init__(self, source: str, special_tokens: Mapping[str, str] = {},
                 clock: Callable[[], float] = time.time) -> None:
        """`special_tokens`: bos_token and others by these names; `clock`: seconds since 1970."""
        self._constants = {**special_tokens, 'add_generation_prompt': True, 'tools': None,
                           'documents': None}
        try:
            self._template = BoundedTemplate(source, clock) if source else None
        except Exception as error:      # of Jinja, and of Python, which compiles what Jinja makes
            raise FlashLlmError(ErrorCode.STORE_CORRUPT,
                                f'chat_template.jinja cannot be used: {error}.') from None

    @property
    def is_there(self) -> bool:
        """False where messages are only joined."""
        return self._template is not None

    def render(self, messages: Sequence[Message]) -> str:
        """A conversation and the beginning of the next answer.

        Raises FlashLlmError(INVALID_REQUEST) when the template refuses the messages.
        """
        if self._template is None:
            return '\n\n'.join(message.content for message in messages)
        try:
            return self._template.render([vars(message) for message in messages],
                                         **self._constants)
        except Exception as error:      # a template can fail in any way Python code can
            raise FlashLlmError(ErrorCode.INVALID_REQUEST,
                                f'The chat template refused the messages: {error}.') from None

    def render_next(self, messages: Sequence[Message], system_prompt: str) -> str:
        """What comes after an answer when a conversation goes on with these messages.

        Raises FlashLlmError(INVALID_REQUEST) when the template refuses them.
        """
        answer = 'the-answer-stands-here'
        while any(answer in text for text in (system_prompt, *(m.content for m in messages))):
            answer += '-'
        before = [*system_message(system_prompt), Message('user', 'x'),
                  Message('assistant', answer)]
        _, found, after = self.render([*before, *messages]).partition(answer)
        if not found:
            raise FlashLlmError(ErrorCode.INVALID_REQUEST,
                                'The chat template leaves answers out: no session can go on.')
        return after


def system_message(system_prompt: str) -> list[Message]:
    """A system prompt as the messages it is: one, or none."""
    return [Message('system', system_prompt)] if system_prompt else []


def check_messages(messages: Sequence[Message], context: int) -> None:
    """Raise FlashLlmError(INVALID_REQUEST, EMPTY_PROMPT and those of `check_text`)."""
    if len(messages) > context:
        raise FlashLlmError(ErrorCode.PROMPT_TOO_LONG,
                            f'messages has {len(messages)} entries; a context of {context} tokens '
                            f'takes at most {context}.')
    characters = sum(len(message.content) for message in messages)
    if characters > context * _CHARACTERS_PER_TOKEN:
        raise FlashLlmError(ErrorCode.PROMPT_TOO_LONG,
                            f'messages have {characters} characters; a context of {context} '
                            f'tokens takes at most {context * _CHARACTERS_PER_TOKEN}.')
    for index, message in enumerate(messages):
        field = f'messages[{index}]'
        if message.role not in ROLES:
            raise FlashLlmError(ErrorCode.INVALID_REQUEST, f'{field}.role is {message.role!r}; '
                                f'it must be one of {", ".join(ROLES)}.')
        check_text(f'{field}.content', message.content, context)
        if not message.content.strip():
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
