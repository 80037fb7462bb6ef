"""From a request to the tokens that the model reads: a conversation's first turn or its next."""

from collections.abc import Sequence
from dataclasses import dataclass

from flash_llm_ros.engine.request.generation import GenerationRequest
from flash_llm_ros.engine.text.call_format import CallFormat
from flash_llm_ros.engine.text.chat_template import (
    ChatTemplate,
    Message,
    check_messages,
    check_text,
    system_message,
)
from flash_llm_ros.engine.text.tokenizer import TextTokenizer
from flash_llm_ros.engine.text.tools import Tool, check_choice, check_tools
from flash_llm_ros.model_spec import ModelSpec
from flash_llm_ros.store.errors import ErrorCode, FlashLlmError

_LONGEST_NAME = 256     # characters
_LEAST_ROOM = 4         # an answer has at least a fourth of the context where turns may be dropped
_KEPT = 2               # and what is kept of a full one takes at most half of it, if that can be
_LONGEST_STOP = 4096    # characters, of all stop strings together


@dataclass(frozen=True)
class Prompt:
    """What the model reads, and where in it later turns begin that can become the first."""

    tokens: list[int]
    turns: tuple[int, ...] = ()
    dropped: int = 0        # tokens of older turns

    def without_oldest(self, opening: list[int], joint: list[int], most: int) -> 'Prompt':
        """As a conversation that begins with a later turn: the first that leaves at most `most`.

        `opening` comes before what a user says first, `joint` between an answer and what a user
        says then. Where no turn leaves so few tokens it is the last one that can be the first.
        """
        found = self
        for number, begin in enumerate(self.turns):
            said = begin + len(joint)
            if self.tokens[begin:said] != joint:
                continue        # raw, or of an assistant: no conversation begins with it
            moved = len(opening) - said
            found = Prompt([*opening, *self.tokens[said:]],
                           tuple(later + moved for later in self.turns[number + 1:]), -moved)
            if len(found.tokens) <= most:
                break
        return found


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
        if request.drop_oldest_turns and not request.session_id:
            raise _invalid('drop_oldest_turns is true and session_id is empty; only a session has '
                           'turns that can be dropped.')
        if not isinstance(request.max_tokens, int) or request.max_tokens < 1:
            raise _invalid(f'max_tokens is {request.max_tokens}; it must be at least 1.')
        if sum(map(len, request.stop)) > _LONGEST_STOP:
            raise _invalid(f'stop has {sum(map(len, request.stop))} characters; at most '
                           f'{_LONGEST_STOP} are taken.')
        if not all(request.stop):
            raise _invalid('stop holds an empty string; every answer would be empty.')
        check_tools(request.tools)
        for tool in request.tools:
            check_text(f'tools ({tool.name})', f'{tool.description}{tool.parameters}',
                       self._context)
        check_choice(request.tool_choice, request.tools)
        if request.tools and request.raw:
            raise _invalid('raw is true and tools are given; tools need the chat template, so '
                           'that raw must be false.')
        if request.tools and request.tool_choice != 'none' and (request.constraint or request.stop):
            raise _invalid('tools are given with a constraint or stop; beside those tool_choice '
                           'must be none, since a call has a form of its own.')

    def calls(self) -> CallFormat:
        """How the model writes tool calls; raises FlashLlmError(INVALID_REQUEST)."""
        return self._template.calls()

    def first(self, request: GenerationRequest) -> Prompt:
        """The tokens of a request that begins a conversation."""
        if request.raw:
            text = request.prompt
        else:
            text = self._template.render([*system_message(request.system_prompt),
                                          *_turns(request)], request.tools)
        return self._checked(Prompt(self._tokenizer.encode(text)), 'prompt')

    def following(self, request: GenerationRequest, conversation: list[int],
                  turns: Sequence[int], system_prompt: str) -> Prompt:
        """A conversation with a request as its next turn; what is there is left as it is.

        `turns`: where in it later turns begin, but for tools'; `system_prompt` is the one that it
        began with; a turn may repeat it. The oldest turns are left out where the request says so
        and the answer would have too little room.
        """
        said = [message for message in _turns(request) if message.role != 'system']
        if request.raw:
            text = request.prompt
        else:
            text = self._template.render_next(said, system_prompt, request.tools)
            if self._template.is_there and conversation[-1] in self._spec.end_tokens:
                conversation = conversation[:-1]        # the template ends the answer itself
        if said[0].role != 'tool':      # whose result may look like what a user says
            turns = (*turns, len(conversation))
        prompt = Prompt([*conversation, *self._tokenizer.encode(text, begin=False)], tuple(turns))
        room = min(request.max_tokens, self._context // _LEAST_ROOM)
        if request.drop_oldest_turns and len(prompt.tokens) + room > self._context:
            prompt = prompt.without_oldest(*self._seams(request, system_prompt),
                                           self._context // _KEPT)
        return self._checked(prompt, f'session {request.session_id!r} with this turn')

    def preamble(self, system_prompt: str, tools: Sequence[Tool] = ()) -> list[int]:
        """The tokens that every prompt with this system prompt and these tools begins with."""
        return _common(*(self._tokenizer.encode(self._template.render(
            [*system_message(system_prompt), Message('user', text)], tools))
            for text in ('a', 'b')))

    def _seams(self, request: GenerationRequest, system_prompt: str
               ) -> tuple[list[int], list[int]]:
        """What comes before a turn like this one: as the first of a conversation, and later."""
        if request.raw:
            return self._tokenizer.encode(''), []
        return self.preamble(system_prompt, request.tools), _common(*(
            self._tokenizer.encode(self._template.render_next([Message('user', text)],
                                                              system_prompt, request.tools),
                                   begin=False)
            for text in ('a', 'b')))

    def _checked(self, prompt: Prompt, what: str) -> Prompt:
        tokens = prompt.tokens
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
        return prompt


def own_system_prompt(request: GenerationRequest) -> str:
    """The system prompt that a conversation begins with, in whichever field it stands."""
    if request.messages and request.messages[0].role == 'system':
        return request.messages[0].content
    return request.system_prompt


def _common(first: list[int], second: list[int]) -> list[int]:
    """What both begin with."""
    same = 0
    while same < min(len(first), len(second)) and first[same] == second[same]:
        same += 1
    return first[:same]


def _turns(request: GenerationRequest) -> list[Message]:
    return list(request.messages) or [Message('user', request.prompt)]


def _invalid(sentence: str) -> FlashLlmError:
    return FlashLlmError(ErrorCode.INVALID_REQUEST, sentence)
