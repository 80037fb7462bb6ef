"""Goals made out of plain Python values."""

from collections.abc import Callable
import json
import math

import pytest

pytestmark = pytest.mark.ros


@pytest.fixture(params=['here', 'Humble'], autouse=True)
def _messages_as(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Humble's check their fields always, and have no argument that asks for it."""
    from flash_llm_msgs.action import GenerateText
    from flash_llm_msgs.msg import ChatMessage, OutputConstraint, SamplingOptions, Tool, ToolCall

    for kind in (GenerateText.Goal, ChatMessage, OutputConstraint, SamplingOptions, Tool, ToolCall):
        def init(self: object, *, made: Callable = kind.__init__, **fields: object) -> None:
            assert set(fields) <= set(self.get_fields_and_field_types()), fields
            made(self, check_fields=True, **fields)

        if request.param == 'Humble':
            monkeypatch.setattr(kind, '__init__', init)


def test_goal_has_every_field() -> None:
    from flash_llm_msgs.action import GenerateText
    from flash_llm_msgs.msg import ChatMessage, OutputConstraint
    from flash_llm_ros.client.goal import make_goal

    goal = make_goal(
        'p', messages=[('user', 'a'), {'role': 'assistant', 'content': 'b'}], system_prompt='s',
        raw=True, session_id='i', priority=200, deadline=3, speak=True, max_tokens=4,
        temperature=0.5, top_k=6, top_p=0.25, min_p=0.125, repetition_penalty=1.5, seed=2**63,
        stop=['x'],
        json_schema={'type': 'integer'})
    assert [(m.role, m.content) for m in goal.messages] == [('user', 'a'), ('assistant', 'b')]
    assert (goal.prompt, goal.system_prompt, goal.raw, goal.session_id, goal.priority,
            goal.deadline, goal.speak) == ('p', 's', True, 'i', 200, 3.0, True)
    sampling = goal.sampling
    assert (sampling.max_tokens, sampling.temperature, sampling.top_k, sampling.top_p,
            sampling.min_p, sampling.repetition_penalty, sampling.seed, sampling.stop) == (
        4, 0.5, 6, 0.25, 0.125, 1.5, 2**63, ['x'])
    assert goal.constraint.kind == OutputConstraint.JSON_SCHEMA
    assert json.loads(goal.constraint.text) == {'type': 'integer'}
    assert make_goal('p', choices=('a', 'b')).constraint == OutputConstraint(
        kind=OutputConstraint.CHOICES, choices=['a', 'b'])
    assert make_goal('p', regex='a+').constraint.kind == OutputConstraint.REGEX
    assert make_goal('p', grammar='start: "a"').constraint.kind == OutputConstraint.GRAMMAR
    assert make_goal('p', interface=ChatMessage, bounds={'role': {'const': 'user'}}).constraint == (
        OutputConstraint(kind=OutputConstraint.INTERFACE, text='flash_llm_msgs/msg/ChatMessage',
                         bounds='{"role": {"const": "user"}}'))
    for kind in (GenerateText, GenerateText.Goal):      # what message_from makes, too
        constraint = make_goal('p', interface=kind).constraint
        assert constraint.text == 'flash_llm_msgs/action/GenerateText'
    assert make_goal('p') == type(goal)(prompt='p')     # the defaults are the message's own


@pytest.mark.parametrize(('options', 'word'), [
    ({'priority': 256}, 'priority is 256'), ({'prompt': 7}, 'prompt is 7'),
    ({'seed': -1}, 'seed is -1'), ({'stop': 'abc'}, 'list'), ({'messages': ['Hello']}, 'pair'),
    ({'messages': [{'role': 'user'}]}, 'mapping'), ({'choices': 'ab'}, 'list'),
    ({'regex': 'a', 'choices': ['b']}, 'regex and choices'),
    ({'prompt': 'a\ud83d'}, 'prompt is not valid UTF-8 at character 1'),
    ({'prompt': 'a\0b'}, 'prompt holds a NUL at character 1'),
    ({'system_prompt': '\udcff'}, 'system_prompt is not'), ({'stop': ['\udcff']}, 'stop is not'),
    ({'session_id': '\0'}, 'session_id holds'), ({'choices': ['a', '\0']}, 'choices holds'),
    ({'messages': [('user', '\ud83d')]}, 'content is not'), ({'regex': '\ud83d'}, 'regex is not'),
    ({'interface': int}, 'interface is'), ({'interface': 5}, 'interface is'),
    ({'deadline': 'x'}, "deadline is 'x'; it has to be a number"),
    ({'temperature': None}, 'temperature is None'), ({'top_p': 10 ** 400}, 'top_p is 1000'),
    ({'stop': 5}, 'stop is 5'), ({'messages': 5}, 'messages is 5'), ({'regex': 5}, 'regex is 5'),
    ({'json_schema': {'integer'}}, 'json_schema cannot be written as JSON: .* set is not'),
    ({'json_schema': {'maximum': math.inf}}, 'json_schema cannot be .* Out of range'),
    ({'interface': 'std_msgs/msg/String', 'bounds': {1}}, 'bounds cannot be written'),
])
def test_wrong_options_are_named(options: dict, word: str) -> None:
    from flash_llm_ros.client.goal import make_goal

    with pytest.raises(ValueError, match=word):
        make_goal(**options)
