"""From a request to the tokens that the model reads: a conversation's first turn or its next."""

from flash_llm_ros.engine.request.generation import GenerationRequest
from flash_llm_ros.engine.text.chat_template import (
    ChatTemplate,
    Message,
    check_messages,
    check_text,
    system_message,
)
from flash_llm_ros.engine.text.tokenizer import TextTokenizer
from flash_llm_ros.model_spec import ModelSpec
from flash_llm_ros.store.errors import ErrorCode, FlashLlmError

_LONGEST_NAME = 256     # characters
_LONGEST_STOP = 4096    # characters, of all stop strings together


class PromptTokens:
    """Checks and tokenises requests; knows the model's words and the context, nothing else."""

    def __init__(self, spec: ModelSpec, tokenizer: TextTokenizer, template: ChatTemplate,
                 context: int) -> None:
        self._spec, self._tokenizer, self._template = spec, tokenizer, template
        self._context = context

    def check(self, request: GenerationRequest) -> None:
        """Raise FlashLlmError for what no conversation can go on with.

        EMPTY_PROMPT, INVALID_TEXT, PROMPT_TOO_LONG, INVALID_REQUEST; the sentence names the field.
        """
        check_text('prompt', request.prompt, self._context)
        check_text('system_prompt', request.system_prompt, self._context)
        check_text('session_id', request.session_id, self._context)
        if len(request.session_id) > _LONGEST_NAME:
            raise _invalid(f'session_id has {len(request.session_id)} characters; at most '
                           f'{_LONGEST_NAME} are taken.')
        if request.messages:
            if request.prompt:
                raise _invalid('prompt and messages are both given; a request has one of them.')
            if request.raw:
                raise _invalid('raw is true and messages are given; messages need the chat '
                               'template, so that raw must be false.')
            check_messages(request.messages, self._context)
            if request.system_prompt and request.messages[0].role == 'system':
                raise _invalid('system_prompt and messages[0] of the role system are both given; '
                               'a conversation has one of them.')
        elif not request.prompt.strip():
            raise FlashLlmError(ErrorCode.EMPTY_PROMPT, 'prompt is empty; it must hold some text.')
        if not isinstance(request.max_tokens, int) or request.max_tokens < 1:
            raise _invalid(f'max_tokens is {request.max_tokens}; it must be at least 1.')
        if sum(map(len, request.stop)) > _LONGEST_STOP:
            raise _invalid(f'stop has {sum(map(len, request.stop))} characters; at most '
                           f'{_LONGEST_STOP} are taken.')
        if not all(request.stop):
            raise _invalid('stop holds an empty string; every answer would be empty.')

    def first(self, request: GenerationRequest) -> list[int]:
        """The tokens of a request that begins a conversation."""
        if request.raw:
            text = request.prompt
        else:
            text = self._template.render([*system_message(request.system_prompt),
                                          *_turns(request)])
        return self._checked(self._tokenizer.encode(text), 'prompt')

    def following(self, request: GenerationRequest, conversation: list[int],
                  system_prompt: str) -> list[int]:
        """A conversation with a request as its next turn; what is there is left as it is.

        `system_prompt` is the one that the conversation began with; a turn may repeat it.
        """
        if request.raw:
            text = request.prompt
        else:
            turns = [message for message in _turns(request) if message.role != 'system']
            text = self._template.render_next(turns, system_prompt)
            if self._template.is_there and conversation[-1] in self._spec.end_tokens:
                conversation = conversation[:-1]        # the template ends the answer itself
        return self._checked([*conversation, *self._tokenizer.encode(text, begin=False)],
                             f'session {request.session_id!r} with this turn')

    def preamble(self, system_prompt: str) -> list[int]:
        """The tokens that every prompt with this system prompt begins with."""
        first, second = (self._tokenizer.encode(self._template.render(
            [*system_message(system_prompt), Message('user', text)])) for text in ('a', 'b'))
        same = 0
        while same < min(len(first), len(second)) and first[same] == second[same]:
            same += 1
        return first[:same]

    def _checked(self, tokens: list[int], what: str) -> list[int]:
        if not tokens:
            raise FlashLlmError(ErrorCode.EMPTY_PROMPT, f'{what} has only characters for which '
                                'the model has no tokens; it must hold some text.')
        if max(tokens) >= self._spec.embedding.vocab_size:
            raise FlashLlmError(ErrorCode.INVALID_TEXT, f'{what} holds the token {max(tokens)}, '
                                f'but the model has only {self._spec.embedding.vocab_size}.')
        if len(tokens) >= self._context:
            raise FlashLlmError(ErrorCode.PROMPT_TOO_LONG,
                                f'{what} has {len(tokens)} tokens with its template; '
                                f'context_length is {self._context} and an answer needs at least '
                                'one.')
        return tokens


def own_system_prompt(request: GenerationRequest) -> str:
    """The system prompt that a conversation begins with, in whichever field it stands."""
    if request.messages and request.messages[0].role == 'system':
        return request.messages[0].content
    return request.system_prompt


def _turns(request: GenerationRequest) -> list[Message]:
    return list(request.messages) or [Message('user', request.prompt)]


def _invalid(sentence: str) -> FlashLlmError:
    return FlashLlmError(ErrorCode.INVALID_REQUEST, sentence)
