"""From a request's text to the text that the model reads."""

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment

from flash_llm_ros.store.errors import ErrorCode, FlashLlmError

# Longer prompts are refused without tokenising them: few tokens have more characters.
_CHARACTERS_PER_TOKEN = 64


class ChatTemplate:
    """The model's own chat template, run in a sandbox; without one the prompt is used as it is."""

    def __init__(self, source: str, begin_text: str, end_text: str) -> None:
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True,
                                                    extensions=['jinja2.ext.loopcontrols'])
        environment.globals['raise_exception'] = _raise
        self._constants = {'bos_token': begin_text, 'eos_token': end_text,
                           'add_generation_prompt': True, 'tools': None, 'documents': None}
        try:
            self._template = environment.from_string(source) if source else None
        except (jinja2.TemplateError, RecursionError) as error:
            raise FlashLlmError(ErrorCode.STORE_CORRUPT,
                                f'chat_template.jinja cannot be used: {error}.') from None

    def render(self, prompt: str, system_prompt: str = '') -> str:
        """Raises FlashLlmError(INVALID_REQUEST) when the template refuses the messages."""
        if self._template is None:
            return f'{system_prompt}\n\n{prompt}' if system_prompt else prompt
        messages = [{'role': 'system', 'content': system_prompt}] if system_prompt else []
        messages.append({'role': 'user', 'content': prompt})
        try:
            return self._template.render(messages=messages, **self._constants)
        except Exception as error:      # a template can fail in any way Python code can
            raise FlashLlmError(ErrorCode.INVALID_REQUEST,
                                f'The chat template refused the messages: {error}.') from None


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


def _raise(message: str) -> None:
    raise jinja2.TemplateError(message)
