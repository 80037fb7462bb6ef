"""Tools: what a model may ask for, and what it has asked for. Nothing here is ever done."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
import hashlib
import json
import re
from typing import Any

from flash_llm_ros.store.errors import ErrorCode, FlashLlmError

ID_CHARACTERS = 9
MOST_TOOLS = 64
MOST_CHARACTERS = 50_000        # of all tools together
CHOICES = ('auto', 'none', 'required')
_MOST_LEVELS = 64
_NAME = re.compile(r'[A-Za-z0-9_-]{1,64}')
# A schema of nothing else names all arguments that there are.
_CLOSED = frozenset(('type', 'properties', 'required', 'title', 'description', '$defs', '$schema'))


@dataclass(frozen=True)
class Tool:
    """Checked by `check_tools`."""

    name: str
    description: str
    parameters: str = ''    # JSON schema of an object; '': there are no arguments
    shown: str = ''         # the same in short, for the model to read; '': parameters

    @cached_property
    def schema(self) -> dict[str, Any]:
        """What the arguments have to be: no others, where the schema names them all."""
        schema = _object(self.parameters)
        return schema | ({'additionalProperties': False} if schema.keys() <= _CLOSED else {})

    @cached_property
    def function(self) -> dict[str, Any]:
        """As chat templates read it (transformers: `tools`)."""
        return {'type': 'function', 'function': {
            'name': self.name, 'description': self.description,
            'parameters': _object(self.shown or self.parameters)}}


@dataclass(frozen=True)
class ToolCall:
    """What the model asks for. `arguments` is a JSON object, as it was written."""

    id: str
    name: str
    arguments: str

    @property
    def function(self) -> dict[str, Any]:
        """As chat templates read it (transformers: `tool_calls`)."""
        return {'type': 'function', 'id': self.id, 'function': {
            'name': self.name, 'arguments': json.loads(self.arguments)}}


def call_id(prompt: Sequence[int]) -> str:
    """Of the call in the answer to these tokens: letters and digits, as Mistral's templates ask."""
    return hashlib.sha256(str(prompt).encode()).hexdigest()[:ID_CHARACTERS]


def check_tools(tools: Sequence[Tool]) -> None:
    """Raise FlashLlmError(INVALID_REQUEST); whether a schema can be kept to shows later."""
    if len(tools) > MOST_TOOLS:
        raise _invalid(f'tools has {len(tools)} entries; it must have at most {MOST_TOOLS}.')
    characters = sum(len(tool.description) + len(tool.parameters) for tool in tools)
    if characters > MOST_CHARACTERS:
        raise _invalid(f'tools have {characters} characters; they must have at most '
                       f'{MOST_CHARACTERS}.')
    for index, tool in enumerate(tools):
        field = f'tools[{index}]'
        if _NAME.fullmatch(tool.name) is None or tool.name in CHOICES:
            raise _invalid(f'{field}.name is {tool.name[:80]!r}; it must be 1 to 64 letters, '
                           f'digits, _ and -, and none of {", ".join(CHOICES)}.')
        if tool.name in [other.name for other in tools[:index]]:
            raise _invalid(f'{field}.name is {tool.name!r}, as that of a tool before it.')
        try:
            schema = _loaded(tool.parameters or '{}')
        except (ValueError, RecursionError) as error:
            raise _invalid(f'{field}.parameters is no JSON: {error}.') from None
        if not isinstance(schema, dict) or schema.get('type', 'object') != 'object' or (
                not isinstance(schema.get('properties', {}), dict)):
            raise _invalid(f'{field}.parameters must be the schema of an object, such as '
                           '{"type": "object", "properties": {"speed": {"type": "number"}}}.')


def digest(tools: Sequence[Tool]) -> bytes:
    """The same for the same tools."""
    return hashlib.sha256(repr(tuple(tools)).encode()).digest()


def check_choice(choice: str, tools: Sequence[Tool]) -> None:
    """Raise FlashLlmError(INVALID_REQUEST)."""
    names = [tool.name for tool in tools]
    if choice not in (*CHOICES, *names):
        raise _invalid(f'tool_choice is {choice[:80]!r}; it must be one of '
                       f'{", ".join((*CHOICES, *names))}.')
    if choice == 'required' and not tools:
        raise _invalid("tool_choice is 'required', but there are no tools.")


def check_calls(field: str, calls: Sequence[ToolCall]) -> None:
    """Those of a message of an assistant; raises FlashLlmError(INVALID_REQUEST)."""
    for index, call in enumerate(calls):
        try:
            arguments = _loaded(call.arguments)
        except (ValueError, RecursionError):
            arguments = None
        if not call.name or not isinstance(arguments, dict):
            raise _invalid(f'{field}.tool_calls[{index}] is {call.name[:80]!r} with the arguments '
                           f'{call.arguments[:80]!r}; it must have a name, and a JSON object.')


def _loaded(text: str) -> Any:
    """JSON that anybody can go through; raises ValueError or RecursionError."""
    found = json.loads(text)
    level = [found]
    for _ in range(_MOST_LEVELS):
        level = [inner for value in level if isinstance(value, dict | list)
                 for inner in (value.values() if isinstance(value, dict) else value)]
    if level:
        raise ValueError(f'{_MOST_LEVELS} values in one another are the most')
    json.dumps(found, ensure_ascii=False).encode()      # an escape may be half of a character
    return found


def _object(parameters: str) -> dict[str, Any]:
    return {'type': 'object', 'properties': {}, **json.loads(parameters or '{}')}


def _invalid(sentence: str) -> FlashLlmError:
    return FlashLlmError(ErrorCode.INVALID_REQUEST, sentence)
