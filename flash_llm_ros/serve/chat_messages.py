"""The messages of a body of /v1/chat/completions, as those of ``make_goal``."""

from typing import Any

from flash_llm_ros.serve.api_error import invalid, short

ROLES = {'system': 'system', 'developer': 'system', 'user': 'user', 'assistant': 'assistant',
         'tool': 'tool'}


def chat_messages(messages: Any) -> list[dict[str, Any]]:
    """Return a conversation; ApiError names what is wrong or not there."""
    if not isinstance(messages, list) or not messages:
        raise invalid('messages has to be a list with at least one message.', 'messages')
    names: dict[str, str] = {}      # of the calls so far, by their ids
    return [_message(message, f'messages[{number}]', names)
            for number, message in enumerate(messages)]


def _message(message: Any, where: str, names: dict[str, str]) -> dict[str, Any]:
    if not isinstance(message, dict):
        raise invalid(f'{where} is {short(message)}; it has to be an object.', where)
    role = message.get('role')
    if not isinstance(role, str) or role not in ROLES:
        raise invalid(f'{where}.role is {short(role)}; it has to be one of {", ".join(ROLES)}.',
                      f'{where}.role')
    for name in ('function_call', 'audio'):
        if message.get(name):
            raise invalid(f'{where}.{name} is not supported.', f'{where}.{name}')
    made: dict[str, Any] = {'role': ROLES[role]}
    if role == 'assistant' and message.get('tool_calls'):
        made['tool_calls'] = _calls(message['tool_calls'], f'{where}.tool_calls')
        names |= {call['id']: call['function']['name'] for call in made['tool_calls']}
    if role == 'tool':
        call = made['tool_call_id'] = message.get('tool_call_id')
        if not isinstance(call, str) or call not in names:
            raise invalid(f'{where}.tool_call_id is {short(call)}; it has to be the id of a call '
                          'before it.', f'{where}.tool_call_id')
        made['name'] = names[call]
    content = message.get('content')
    made['content'] = '' if content is None and 'tool_calls' in made else (
        _text(content, f'{where}.content'))
    return made


def _calls(calls: Any, where: str) -> list[dict[str, Any]]:
    if not isinstance(calls, list):
        raise invalid(f'{where} is {short(calls)}; it has to be a list.', where)
    for call in calls:
        function = call.get('function') if isinstance(call, dict) else None
        if not isinstance(function, dict) or not all(isinstance(text, str) for text in (
                call.get('id'), function.get('name'), function.get('arguments'))):
            raise invalid(f'{where} holds {short(call)}; a call has an id and a function with name '
                          'and arguments, all texts.', where)
    return calls


def _text(content: Any, where: str) -> str:
    """A text, or the texts of its parts."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise invalid(f'{where} is {short(content)}; it has to be a text.', where)
    for part in content:
        if not (isinstance(part, dict) and part.get('type') == 'text'
                and isinstance(part.get('text'), str)):
            raise invalid(f'{where} holds {short(part)}; every part has to be a text: '
                          '{"type": "text", "text": "..."}.', where)
    return ''.join(part['text'] for part in content)
