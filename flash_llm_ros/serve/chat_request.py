"""What a body of /v1/chat/completions asks for, as options of ``make_goal``."""

from dataclasses import dataclass
import secrets
from typing import Any

from flash_llm_ros.serve.api_error import invalid

# Names of our options that are OpenAI's, or those of other servers of this interface.
SAMPLING = ('temperature', 'top_p', 'top_k', 'min_p', 'repetition_penalty')
IGNORED = ('user', 'metadata', 'store', 'service_tier', 'safety_identifier', 'prompt_cache_key',
           'prompt_cache_retention', 'prediction', 'parallel_tool_calls')
# What would change the answer and is not there: the values that ask for nothing. None always does.
NEUTRAL = {'n': (1,), 'logit_bias': ({},), 'presence_penalty': (0,), 'frequency_penalty': (0,),
           'logprobs': (False,), 'top_logprobs': (0,), 'modalities': (['text'],), 'audio': (),
           'tools': ([],), 'tool_choice': ('none', 'auto'), 'functions': ([],),
           'function_call': ('none', 'auto'), 'reasoning_effort': ('none',),
           'verbosity': ('medium',), 'web_search_options': (), 'moderation': ()}
TAKEN = ('model', 'messages', 'stream', 'stream_options', 'max_tokens', 'max_completion_tokens',
         'stop', 'seed', 'response_format', *SAMPLING)
ROLES = {'system': 'system', 'developer': 'system', 'user': 'user', 'assistant': 'assistant'}


@dataclass(frozen=True)
class ChatRequest:
    """A chat completion that was asked for; ``options`` are those of ``make_goal``."""

    model: str
    options: dict[str, Any]
    stream: bool
    include_usage: bool


def chat_request(body: Any) -> ChatRequest:
    """Read a body; ApiError names what is wrong, missing, or not there."""
    if not isinstance(body, dict):
        raise invalid('The body has to be a JSON object.')
    given = {name: value for name, value in body.items() if value is not None}
    for name, value in given.items():
        _check_known(name, value)
    options = {name: given[name] for name in SAMPLING if name in given}
    options |= {'messages': _messages(given.get('messages')), 'max_tokens': _max_tokens(given),
                'stop': _stop(given.get('stop', [])), 'seed': _seed(given.get('seed')),
                'json_schema': _json_schema(given.get('response_format', {'type': 'text'}))}
    usage = _typed(given, 'stream_options', dict, {}).get('include_usage')
    return ChatRequest(_typed(given, 'model', str, ''), options,
                       _typed(given, 'stream', bool, False), bool(usage))


def _check_known(name: str, value: Any) -> None:
    if name in TAKEN or name in IGNORED or (name in NEUTRAL and value in NEUTRAL[name]):
        return
    if name in NEUTRAL:
        raise invalid(f'{name} is not supported; leave it out.', name)
    raise invalid(f'{_short(name)} is no parameter that is known here; leave it out.', name)


def _typed(given: dict[str, Any], name: str, kind: type, default: Any) -> Any:
    value = given.get(name, default)
    if not isinstance(value, kind):
        words = {str: 'a text', bool: 'true or false', dict: 'an object'}
        raise invalid(f'{name} is {_short(value)}; it has to be {words[kind]}.', name)
    return value


def _messages(messages: Any) -> list[tuple[str, str]]:
    if not isinstance(messages, list) or not messages:
        raise invalid('messages has to be a list with at least one message.', 'messages')
    return [_message(message, f'messages[{number}]') for number, message in enumerate(messages)]


def _message(message: Any, where: str) -> tuple[str, str]:
    if not isinstance(message, dict):
        raise invalid(f'{where} is {_short(message)}; it has to be an object.', where)
    role = message.get('role')
    if not isinstance(role, str) or role not in ROLES:
        raise invalid(f'{where}.role is {_short(role)}; it has to be one of {", ".join(ROLES)}.',
                      f'{where}.role')
    for name in ('tool_calls', 'function_call', 'audio'):
        if message.get(name):
            raise invalid(f'{where}.{name} is not supported.', f'{where}.{name}')
    return ROLES[role], _text(message.get('content'), f'{where}.content')


def _text(content: Any, where: str) -> str:
    """A text, or the texts of its parts."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise invalid(f'{where} is {_short(content)}; it has to be a text.', where)
    for part in content:
        if not (isinstance(part, dict) and part.get('type') == 'text'
                and isinstance(part.get('text'), str)):
            raise invalid(f'{where} holds {_short(part)}; every part has to be a text: '
                          '{"type": "text", "text": "..."}.', where)
    return ''.join(part['text'] for part in content)


def _max_tokens(given: dict[str, Any]) -> Any:
    """0, which is the node's own limit, where none is given; a given one is at least 1."""
    for name in ('max_completion_tokens', 'max_tokens'):
        if name in given:
            if given[name] == 0:
                raise invalid(f'{name} is 0; it has to be 1 or more.', name)
            return given[name]
    return 0


def _stop(stop: Any) -> Any:
    return [stop] if isinstance(stop, str) else stop


def _seed(seed: Any) -> Any:
    """Another one each time where none is given; a negative one is another number of 64 bits."""
    if seed is None:
        return secrets.randbits(63)
    return seed % 2**64 if isinstance(seed, int) else seed


def _json_schema(response_format: Any) -> Any:
    """What the answer has to look like; None for text."""
    where = 'response_format'
    kind = response_format.get('type') if isinstance(response_format, dict) else None
    if kind == 'text':
        return None
    if kind == 'json_object':
        return {'type': 'object'}
    form = response_format.get('json_schema') if kind == 'json_schema' else None
    if not isinstance(form, dict) or not isinstance(form.get('schema'), dict):
        raise invalid(
            f'{where} is {_short(response_format)}; it has to be {{"type": "text"}}, '
            '{"type": "json_object"} or {"type": "json_schema", "json_schema": {"schema": ...}}.',
            where)
    return form['schema']


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f'{text[:77]}...'
