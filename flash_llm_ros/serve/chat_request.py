"""What a body of /v1/chat/completions asks for, as options of ``make_goal``."""

from dataclasses import dataclass
import secrets
from typing import Any

from flash_llm_ros.serve.api_error import invalid, short
from flash_llm_ros.serve.chat_messages import chat_messages

# Names of our options that are OpenAI's, or those of other servers of this interface.
SAMPLING = ('temperature', 'top_p', 'top_k', 'min_p', 'repetition_penalty')
IGNORED = ('user', 'metadata', 'store', 'service_tier', 'safety_identifier', 'prompt_cache_key',
           'prompt_cache_retention', 'prediction', 'parallel_tool_calls')
# What would change the answer and is not there: the values that ask for nothing. None always does.
NEUTRAL = {'n': (1,), 'logit_bias': ({},), 'presence_penalty': (0,), 'frequency_penalty': (0,),
           'logprobs': (False,), 'top_logprobs': (0,), 'modalities': (['text'],), 'audio': (),
           'functions': ([],), 'function_call': ('none', 'auto'), 'reasoning_effort': ('none',),
           'verbosity': ('medium',), 'web_search_options': (), 'moderation': ()}
TAKEN = ('model', 'messages', 'stream', 'stream_options', 'max_tokens', 'max_completion_tokens',
         'stop', 'seed', 'response_format', 'tools', 'tool_choice', *SAMPLING)


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
    options |= {'messages': chat_messages(given.get('messages')), 'max_tokens': _max_tokens(given),
                'stop': _stop(given.get('stop', [])), 'seed': _seed(given.get('seed')),
                'json_schema': _json_schema(given.get('response_format', {'type': 'text'}))}
    if given.get('tools'):
        options |= {'tools': _tools(given['tools']),
                    'tool_choice': _tool_choice(given.get('tool_choice', 'auto'))}
    elif given.get('tool_choice', 'none') not in ('auto', 'none'):
        raise invalid('tool_choice is given, but no tools.', 'tool_choice')
    usage = _typed(given, 'stream_options', dict, {}).get('include_usage')
    return ChatRequest(_typed(given, 'model', str, ''), options,
                       _typed(given, 'stream', bool, False), bool(usage))


def _check_known(name: str, value: Any) -> None:
    if name in TAKEN or name in IGNORED or (name in NEUTRAL and value in NEUTRAL[name]):
        return
    if name in NEUTRAL:
        raise invalid(f'{name} is not supported; leave it out.', name)
    raise invalid(f'{short(name)} is no parameter that is known here; leave it out.', name)


def _typed(given: dict[str, Any], name: str, kind: type, default: Any) -> Any:
    value = given.get(name, default)
    if not isinstance(value, kind):
        words = {str: 'a text', bool: 'true or false', dict: 'an object'}
        raise invalid(f'{name} is {short(value)}; it has to be {words[kind]}.', name)
    return value


def _tools(tools: Any) -> list[dict[str, Any]]:
    """Functions are all that there is."""
    if not isinstance(tools, list):
        raise invalid(f'tools is {short(tools)}; it has to be a list.', 'tools')
    for tool in tools:
        if not isinstance(tool, dict) or tool.get('type') != 'function' or not isinstance(
                tool.get('function'), dict):
            raise invalid(f'tools holds {short(tool)}; it has to be {{"type": "function", '
                          '"function": {"name": ..., "parameters": ...}}.', 'tools')
    return tools


def _tool_choice(choice: Any) -> str:
    """A word, or the name of a function."""
    if choice in ('auto', 'none', 'required'):
        return choice
    function = choice.get('function') if isinstance(choice, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get('name'), str):
        raise invalid(f'tool_choice is {short(choice)}; it has to be auto, none, required or '
                      '{"type": "function", "function": {"name": ...}}.', 'tool_choice')
    return function['name']


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
            f'{where} is {short(response_format)}; it has to be {{"type": "text"}}, '
            '{"type": "json_object"} or {"type": "json_schema", "json_schema": {"schema": ...}}.',
            where)
    return form['schema']
