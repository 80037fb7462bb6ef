"""Makes the goal of ~/generate out of plain Python values."""

from collections.abc import Iterable, Mapping
import json
from typing import Any

from flash_llm_msgs.action import GenerateText
from flash_llm_msgs.msg import ChatMessage, OutputConstraint, SamplingOptions, Tool, ToolCall
from flash_llm_ros.client.checked_message import check_text, checked_message
from flash_llm_ros.client.interface_name import interface_name

Message = ChatMessage | tuple[str, str] | Mapping[str, Any]
AnyTool = Tool | Mapping[str, Any]


def make_goal(
    prompt: str = '',
    *,
    messages: Iterable[Message] = (),
    system_prompt: str = '',
    raw: bool = False,
    session_id: str = '',
    drop_oldest_turns: bool = False,
    priority: int = 100,
    deadline: float = 0.0,
    speak: bool = False,
    max_tokens: int = 0,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    repetition_penalty: float = 1.0,
    seed: int = 0,
    stop: Iterable[str] = (),
    json_schema: Mapping[str, Any] | str | None = None,
    regex: str | None = None,
    choices: Iterable[str] | None = None,
    grammar: str | None = None,
    interface: type | str | None = None,
    bounds: Mapping[str, Any] | None = None,
    tools: Iterable[AnyTool] = (),
    tool_choice: str = '',
) -> GenerateText.Goal:
    """Return the goal; its message tells what every field means.

    ``messages`` are ('user', 'text') pairs, {'role', 'content'} mappings or ChatMessages, instead
    of a prompt. ``deadline`` is in seconds from arrival, 0: the node's own. ``speak`` sends its
    sentences to ~/sentences, too. At most one of
    ``json_schema``, ``regex``, ``choices``, ``grammar`` and ``interface`` says what the answer has
    to look like. An interface is a message's class or a name such as 'geometry_msgs/msg/Twist', an
    action (its goal) or a service (its request); ``bounds`` say more about fields:
    {'linear.x': {'maximum': 0.3}}. ``message_from`` makes the message of the answer.
    ``tools`` are what the model may ask for: Tool messages, or mappings with name, description
    and parameters (or as OpenAI has them, with these under 'function'); ``tool_choice`` is 'auto',
    'none', 'required' or a tool's name. An assistant's mapping among ``messages`` may have
    'tool_calls' (ToolCalls, or mappings), a tool's 'tool_call_id' and 'name'.
    ValueError names the argument that does not fit its field, or is a text that cannot be sent.
    """
    goal = checked_message(GenerateText.Goal)
    for name, value in (('prompt', prompt), ('system_prompt', system_prompt), ('raw', raw),
                        ('session_id', session_id), ('drop_oldest_turns', drop_oldest_turns),
                        ('priority', priority), ('deadline', _number('deadline', deadline)),
                        ('speak', speak)):
        _fill(goal, name, value)
    goal.sampling = checked_message(SamplingOptions)
    for name, value in (('max_tokens', max_tokens), ('top_k', top_k), ('seed', seed),
                        ('stop', _listed('stop', stop, 'texts'))):
        _fill(goal.sampling, name, value)
    for name, value in (('temperature', temperature), ('top_p', top_p), ('min_p', min_p),
                        ('repetition_penalty', repetition_penalty)):
        _fill(goal.sampling, name, _number(name, value))
    _fill(goal, 'messages', [_chat_message(message) for message in _listed(
        'messages', messages, 'messages')])
    _fill(goal, 'constraint', _constraint(json_schema, regex, choices, grammar,
                                          interface, bounds))
    _fill(goal, 'tools', [_tool(tool) for tool in _listed('tools', tools, 'tools')])
    _fill(goal, 'tool_choice', tool_choice)
    return goal


def _fill(message: object, name: str, value: object) -> None:
    for text in value if isinstance(value, list) else [value]:
        if isinstance(text, str):
            check_text(name, text)
    try:
        setattr(message, name, value)
    except AssertionError as error:     # how messages that check their fields refuse
        reason = ' '.join(str(error).split())
        raise ValueError(f'{name} is {value!r}. {reason}.') from None


def _number(name: str, value: Any) -> float:
    try:
        if not isinstance(value, str):
            return float(value)
    except (TypeError, ValueError, OverflowError):
        pass
    raise ValueError(f'{name} is {value!r}; it has to be a number.')


def _listed(name: str, values: Iterable[Any], what: str) -> list[Any]:
    if isinstance(values, str | bytes | Mapping) or not isinstance(values, Iterable):
        raise ValueError(f'{name} is {values!r}; it has to be a list of {what}.')
    return list(values)


def _json(name: str, value: Any) -> str:
    """A text stays as it is."""
    try:
        return value if isinstance(value, str) else json.dumps(value, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f'{name} cannot be written as JSON: {error}.') from None


def _chat_message(message: Message) -> ChatMessage:
    if isinstance(message, ChatMessage):
        message = {name: getattr(message, name) for name in message.get_fields_and_field_types()}
    try:
        if not isinstance(message, Mapping):
            message = dict(zip(('role', 'content'), message, strict=True))
        role, content = message['role'], message['content']
    except (KeyError, TypeError, ValueError):
        raise ValueError(f"messages holds {message!r}; it has to be a pair such as "
                         "('user', 'Hello') or a mapping with role and content.") from None
    made = checked_message(ChatMessage)
    _fill(made, 'role', role)
    _fill(made, 'content', content or '')
    _fill(made, 'tool_calls', [_tool_call(call) for call in message.get('tool_calls') or ()])
    _fill(made, 'tool_call_id', message.get('tool_call_id', ''))
    _fill(made, 'name', message.get('name', ''))
    return made


def _tool(tool: AnyTool) -> Tool:
    if isinstance(tool, Tool):
        return _copied(tool, Tool)
    function = {name: value for name, value in _function('tools', tool).items()
                if value is not None}
    return _made(Tool, name=function.get('name', ''), description=function.get('description', ''),
                 parameters=_json('parameters', function.get('parameters', '')))


def _tool_call(call: ToolCall | Mapping[str, Any]) -> ToolCall:
    if isinstance(call, ToolCall):
        return _copied(call, ToolCall)
    function = _function('tool_calls', call)
    return _made(ToolCall, id=call.get('id', ''), name=function.get('name', ''),
                 arguments=_json('arguments', function.get('arguments', '{}')))


def _function(field: str, value: Any) -> Mapping[str, Any]:
    if isinstance(value, Mapping) and isinstance(
            function := value.get('function', value), Mapping):
        return function
    raise ValueError(f'{field} holds {value!r}; it has to be a message, or a mapping with a name.')


def _copied(message: Any, kind: type[Any]) -> Any:
    return _made(kind, **{name: getattr(message, name)
                          for name in message.get_fields_and_field_types()})


def _made(kind: type[Any], **fields: Any) -> Any:
    made = checked_message(kind)
    for name, value in fields.items():
        _fill(made, name, value)
    return made


def _constraint(
    json_schema: Mapping[str, Any] | str | None,
    regex: str | None,
    choices: Iterable[str] | None,
    grammar: str | None,
    interface: type | str | None,
    bounds: Mapping[str, Any] | None,
) -> OutputConstraint:
    given = {'json_schema': json_schema, 'regex': regex, 'choices': choices, 'grammar': grammar,
             'interface': None if interface is None else interface_name(interface)}
    if bounds is not None and interface is None:
        raise ValueError('bounds are given, but no interface, whose fields they would bound.')
    names = [name for name, value in given.items() if value is not None]
    if len(names) > 1:
        raise ValueError(f'{" and ".join(names)} are given; an answer can have one constraint.')
    constraint = checked_message(OutputConstraint)
    if not names:
        return constraint
    constraint.kind = getattr(OutputConstraint, names[0].upper())
    name = names[0]
    if choices is not None:
        _fill(constraint, name, _listed(name, choices, 'texts'))
    else:
        text = given[name]
        if not isinstance(text, str):
            if json_schema is None:
                raise ValueError(f'{name} is {text!r}; it has to be a text.')
            text = _json(name, text)
        check_text(name, text)
        constraint.text = text
    if bounds is not None:
        _fill(constraint, 'bounds', _json('bounds', bounds))
    return constraint
