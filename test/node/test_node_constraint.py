"""Constrained answers through the action and the service of a real node."""

import json
from pathlib import Path
import re

from jsonschema import Draft202012Validator
import pytest
from ros_fixtures import RunningNode, running_node
from test_constraint import SCHEMA

from bench.faults.hostile_constraints import chained, periods
from flash_llm_ros.engine import FinishReason
from flash_llm_ros.store.errors import ErrorCode

pytestmark = pytest.mark.ros


@pytest.fixture(scope='module')
def node(int8_store: Path):
    with running_node(int8_store, dram_budget='60MB', structured=True) as node:
        yield node.activate()


def fill(ask: object, prompt: str, *, max_tokens: int = 120, **constraint: object) -> object:
    ask.prompt, ask.sampling.max_tokens = prompt, max_tokens
    for name, value in constraint.items():
        setattr(ask.constraint, name, value)
    return ask


def ask_both(node: RunningNode, **fields: object) -> list:
    """The same of the service and of the action."""
    from flash_llm_msgs.action import GenerateText
    from flash_llm_msgs.srv import GenerateText as Service

    answer = node.client.generate_text(fill(Service.Request(), 'Drive', **fields))
    _, result = node.client.send_goal(fill(GenerateText.Goal(), 'Drive', **fields)).result(60)
    assert (answer.text, answer.error, answer.finish_reason) == (
        result.text, result.error, result.finish_reason)
    return answer


def test_every_kind(node: RunningNode) -> None:
    answer = ask_both(node, kind=1, text=json.dumps(SCHEMA))
    Draft202012Validator(SCHEMA).validate(json.loads(answer.text))
    assert answer.finish_reason == FinishReason.STOP and answer.error.code == ErrorCode.NONE
    assert 0 < answer.stats.forced_tokens < answer.stats.generated_tokens
    assert re.fullmatch('[abc]{3,9}x', ask_both(node, kind=2, text='[abc]{3,9}x').text)
    assert ask_both(node, kind=3, choices=['left', 'right']).text in ('left', 'right')
    assert ask_both(node, kind=4, text='start: "a" start "b" | "c"', max_tokens=2).text[0] in 'ac'


def test_an_interface(node: RunningNode) -> None:
    from geometry_msgs.msg import Twist

    from flash_llm_ros.client import message_from

    bounds = {f'{part}.{axis}': {'enum': [0.25, 0]} for part in ('linear', 'angular')
              for axis in 'xyz'}
    answer = ask_both(node, kind=5, text='geometry_msgs/msg/Twist', bounds=json.dumps(bounds))
    assert answer.error.code == ErrorCode.NONE, answer.error.message
    assert message_from(Twist, answer.text).linear.x in (0.25, 0)


@pytest.mark.parametrize(('fields', 'code', 'words'), [
    ({'kind': 5, 'text': 'no/msg/Thing'}, ErrorCode.INVALID_CONSTRAINT, 'not installed'),
    ({'kind': 2, 'text': 'a', 'bounds': '{}'}, ErrorCode.INVALID_CONSTRAINT, 'bounds are given'),
    ({'kind': 1, 'text': '{'}, ErrorCode.INVALID_CONSTRAINT, 'no JSON'),
    ({'kind': 2, 'text': '(a'}, ErrorCode.INVALID_CONSTRAINT, 'unclosed'),
    ({'kind': 3}, ErrorCode.INVALID_CONSTRAINT, 'choices holds 0'),
    ({'kind': 77, 'text': 'x'}, ErrorCode.INVALID_CONSTRAINT, 'kind is 77'),
    ({'text': '{}'}, ErrorCode.INVALID_CONSTRAINT, 'kind is NONE'),
    # The library would end the process, and never return.
    ({'kind': 4, 'text': chained(2500)}, ErrorCode.INVALID_CONSTRAINT, 'nested too deeply'),
    ({'kind': 4, 'text': periods((97, 101, 103, 107, 109, 113))}, ErrorCode.INVALID_CONSTRAINT,
     'takes more than 2 s or 20 MB'),
    ({'kind': 3, 'choices': ['far too long'], 'max_tokens': 3}, ErrorCode.CONSTRAINT_UNMET,
     'max_tokens'),
])
def test_errors(node: RunningNode, fields: dict[str, object], code: ErrorCode, words: str) -> None:
    answer = ask_both(node, **fields)
    assert answer.error.code == code and words in answer.error.message
    assert answer.finish_reason == FinishReason.ERROR
    assert answer.text == ('far' if code is ErrorCode.CONSTRAINT_UNMET else '')


def test_a_deadline_before_the_answer_is_complete(node: RunningNode) -> None:
    from flash_llm_msgs.action import GenerateText

    ask = fill(GenerateText.Goal(deadline=0.7), 'Drive', kind=2, text='[a-z]{400}',
               max_tokens=450)
    goal = node.client.send_goal(ask)
    _, result = goal.result(60)
    # Either the machine was quick enough, or the deadline is told, with what there was.
    if len(result.text) == 400:
        assert result.error.code == ErrorCode.NONE
    else:
        assert result.finish_reason == FinishReason.DEADLINE
        assert result.error.code == (ErrorCode.CONSTRAINT_UNMET if result.text
                                     else ErrorCode.DEADLINE)
        assert re.fullmatch('[a-z]*', result.text)


def test_without_the_parameter(active_node: RunningNode) -> None:
    answer = ask_both(active_node, kind=3, choices=['yes', 'no'])
    assert answer.error.code == ErrorCode.INVALID_CONSTRAINT
    assert 'structured is false' in answer.error.message
