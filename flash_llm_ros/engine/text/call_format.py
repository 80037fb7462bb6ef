"""How models write tool calls: each kind in its own words, as its chat template has them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
import json

from flash_llm_ros.engine.text.call_arguments import (
    ArgumentSpelling,
    JsonArguments,
    PythonArguments,
    TaggedArguments,
)
from flash_llm_ros.engine.text.tools import Tool, ToolCall
from flash_llm_ros.store.errors import ErrorCode, FlashLlmError

_JSON_ARGUMENTS = JsonArguments()
ID = '\0'       # in a middle or tail: where the call's id stands


@dataclass(frozen=True)
class Spelling:
    """A call is begin, opening, its name, middle, its arguments, tail."""

    begin: str              # '': the answer is the call, with nothing before it
    opening: str
    middle: str
    tail: str
    arguments: ArgumentSpelling = _JSON_ARGUMENTS

    def written(self, call: ToolCall) -> str:
        """What a model writes that asks for this."""
        arguments = self.arguments.written(call.arguments)
        return f'{self.head(call)}{arguments}{self.tail.replace(ID, call.id)}'

    def head(self, call: ToolCall) -> str:
        """The same before its arguments."""
        return f'{self.begin}{self.opening}{call.name}{self.middle.replace(ID, call.id)}'


@dataclass(frozen=True)
class CallFormat:
    """How a kind of models was trained to spell calls, and what they write besides."""

    name: str
    own: Spelling
    others: tuple[Spelling, ...]
    marks: tuple[str, ...] = ()     # of these texts, one token each where the model has it

    @property
    def spellings(self) -> tuple[Spelling, ...]:
        return self.own, *self.others


_JSON = '{"name": "', '", "arguments": ', '}'
_BARE = Spelling('', *_JSON)
# Models that know calls from reading rather than training write them as blocks of code.
_BLOCK = Spelling('```json', f'\n{_JSON[0]}', _JSON[1], '}\n```')
_LISTED = '[{"name": "', '", "arguments": ', '}]'
HERMES = CallFormat(
    'Hermes', Spelling('<tool_call>', f'\n{_JSON[0]}', _JSON[1], '}\n</tool_call>'),
    (_BLOCK, _BARE), ('<tool_call>', '</tool_call>'))
GRANITE = CallFormat('Granite', Spelling('<|tool_call|>', *_LISTED), (_BLOCK, _BARE),
                     ('<|tool_call|>',))
MISTRAL = CallFormat('Mistral', Spelling('[TOOL_CALLS]', *_LISTED), (_BLOCK, _BARE),
                     ('[TOOL_CALLS]',))
MISTRAL_NAMED = replace(MISTRAL, own=Spelling('[TOOL_CALLS]', '', '[ARGS]', ''),
                        marks=('[TOOL_CALLS]', '[ARGS]'))
MISTRAL_NAMED_ID = replace(
    MISTRAL, own=Spelling('[TOOL_CALLS]', '', f'[CALL_ID]{ID}[ARGS]', ''),
    marks=('[TOOL_CALLS]', '[CALL_ID]', '[ARGS]'))
_LLAMA = '{"name": "', '", "parameters": ', '}'
LLAMA = CallFormat('Llama 3', Spelling('', *_LLAMA),
                   (Spelling('<|python_tag|>', *_LLAMA), _BLOCK), ('<|python_tag|>',))
LFM2 = CallFormat(
    'LFM2', Spelling('<|tool_call_start|>', '[', '(', ')]<|tool_call_end|>', PythonArguments()),
    (_BLOCK, _BARE), ('<|tool_call_start|>', '<|tool_call_end|>'))
QWEN_CODER = replace(
    HERMES, name='Qwen3-Coder', own=Spelling(
        '<tool_call>', '\n<function=', '>\n', '</function>\n</tool_call>', TaggedArguments()))
_OF_LFM2 = ('<|tool_list_start|>', '<|tool_call_start|>', 'List of tools: ')
# Other things that templates with one of the marks above do: theirs is another format.
_OTHERS = ('<function=', '<arg_key>', '<\uff5ctool', '<|tool_calls_section_begin|>')


def call_format(template: str) -> CallFormat:
    """What a chat template with tools says of calls.

    Raises FlashLlmError(INVALID_REQUEST) for a format that is not known.
    """
    if QWEN_CODER.own.begin in template and '<parameter=' in template:
        return QWEN_CODER
    if not any(other in template for other in _OTHERS):
        if '[ARGS]' in template:
            return MISTRAL_NAMED_ID if '[CALL_ID]' in template else MISTRAL_NAMED
        if '[TOOL_CALLS]' in template:
            return _mistral_listed(template)
        for found in (GRANITE, HERMES):
            if found.own.begin in template:
                return found
        if any(mark in template for mark in _OF_LFM2):
            return LFM2
        if 'ipython' in template and '"parameters": ' in template:
            return LLAMA
    raise unknown_format()


def _mistral_listed(template: str) -> CallFormat:
    """With a blank before the list, with an id behind the arguments, as the template has it."""
    own = MISTRAL.own
    if '[TOOL_CALLS] [' in template:
        own = replace(own, opening=f' {own.opening}')
    if ', "id": "' in template:
        own = replace(own, tail=f', "id": "{ID}"}}]')
    return replace(MISTRAL, own=own)


def unknown_format() -> FlashLlmError:
    """What a request with tools gets of a model whose calls could not be read."""
    return FlashLlmError(
        ErrorCode.INVALID_REQUEST, "tools are given, but the model's chat template has a format of "
        'calls that is not known here; known are Hermes (Qwen), Qwen3-Coder, Llama 3, Granite, '
        'Mistral and LFM2.')


def instructions(tools: Sequence[Tool]) -> str:
    """What a model is told whose chat template knows no tools; it shall answer as HERMES."""
    signatures = '\n'.join(json.dumps(tool.function, ensure_ascii=False) for tool in tools)
    return ('# Tools\n\nYou may call one or more functions to assist with the user query.\n\n'
            'You are provided with function signatures within <tools></tools> XML tags:\n<tools>\n'
            f'{signatures}\n</tools>\n\nFor each function call, return a json object with function '
            'name and arguments within <tool_call></tool_call> XML tags:\n<tool_call>\n'
            '{"name": <function-name>, "arguments": <args-json-object>}\n</tool_call>')


def response(content: str) -> str:
    """A tool's result, for a model whose chat template knows no tools."""
    return f'<tool_response>\n{content}\n</tool_response>'
