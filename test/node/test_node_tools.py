"""Tool calls through the action and the service of a real node, and from Python."""

from collections.abc import Iterator
import json
from pathlib import Path

from jsonschema import Draft202012Validator
import pytest
from ros_fixtures import RunningNode, running_node

from flash_llm_ros.engine import FinishReason
from flash_llm_ros.store.errors import ErrorCode

pytestmark = [pytest.mark.ros, pytest.mark.timeout(120)]
PLACE = {'type': 'object', 'properties': {'place': {'enum': ['kitchen', 'dock']}},
         'required': ['place'], 'additionalProperties': False}


@pytest.fixture(scope='module')
def node(int8_store: Path) -> Iterator[RunningNode]:
    with running_node(int8_store, dram_budget='60MB', structured=True, context_length=3072) as node:
        yield node.activate()


def fill(ask: object, **options: object) -> object:
    from flash_llm_msgs.msg import Tool

    ask.prompt, ask.sampling.max_tokens = 'Go!', 300
    ask.tools = [
        Tool(name='drive_to', description='Drives.', parameters=json.dumps(PLACE)),
        Tool(name='lamp', description='Switches it.', interface='std_srvs/srv/SetBool'),
        Tool(name='move', description='Moves.', interface='geometry_msgs/msg/Twist', bounds=(
            '{"linear.x": {"minimum": -0.3, "maximum": 0.3, "multipleOf": 0.1}, "linear.y": '
            '{"const": 0}, "linear.z": {"const": 0}, "angular": {"const": {"x": 0, "y": 0, "z": '
            '0}}}'))]
    for name, value in options.items():
        setattr(ask, name, value)
    return ask


def asked(node: RunningNode, **options: object) -> tuple[object, list]:
    """The result, and the calls of the chunks: the action's, those on ~/stream, the service's."""
    from flash_llm_msgs.action import GenerateText
    from flash_llm_msgs.srv import GenerateText as Service

    def stream() -> list:
        chunks = [node.client.chunks.get(timeout=30)]
        while chunks[-1].finish_reason == FinishReason.RUNNING:
            chunks.append(node.client.chunks.get(timeout=30))
        return chunks

    while not node.client.chunks.empty():
        node.client.chunks.get_nowait()
    answer = node.client.generate_text(fill(Service.Request(), **options))
    goal = node.client.send_goal(fill(GenerateText.Goal(), **options))
    _, result = goal.result(60)
    assert (answer.text, answer.tool_calls, answer.error) == (
        result.text, result.tool_calls, result.error)
    for chunks in (stream(), stream(), goal.chunks):
        assert chunks[-1].tool_calls == result.tool_calls
        assert all(not chunk.tool_calls for chunk in chunks[:-1])
        assert ''.join(chunk.text for chunk in chunks) == result.text
    return result


def test_calls(node: RunningNode) -> None:
    from geometry_msgs.msg import Twist

    from flash_llm_ros.client import message_from

    (call,) = asked(node, tool_choice='drive_to').tool_calls
    assert call.name == 'drive_to' and len(call.id) == 9
    Draft202012Validator(PLACE).validate(json.loads(call.arguments))
    (call,) = asked(node, tool_choice='lamp').tool_calls
    assert list(json.loads(call.arguments)) == ['data']
    result = asked(node, tool_choice='move')
    twist = message_from(Twist, result.tool_calls[0].arguments)
    assert abs(twist.linear.x) <= 0.3 and twist.angular == Twist().angular
    assert result.text == '' and result.finish_reason == FinishReason.STOP
    result = asked(node, tool_choice='none')
    assert result.text and not result.tool_calls


def test_a_conversation_with_a_result(node: RunningNode) -> None:
    """From Python: an answer's message and a tool's go back as they are, as OpenAI's do."""
    from flash_llm_ros.client import FlashLlmClient

    tool = {'type': 'function', 'function': {'name': 'drive_to', 'description': 'Drives.',
                                             'parameters': PLACE}}
    with FlashLlmClient(domain_id=node.domain) as llm:
        first = llm.generate('Go!', tools=[tool], tool_choice='required', max_tokens=200)
        (call,) = first.tool_calls
        result = {'role': 'tool', 'content': '{"ok": true}', 'tool_call_id': call.id,
                  'name': call.name}
        same = []
        for message in (first.message, {'role': 'assistant', 'content': None, 'tool_calls': [{
                'id': call.id, 'type': 'function', 'function': {
                    'name': call.name, 'arguments': call.arguments}}]}):
            same.append(llm.generate(messages=[('user', 'Go!'), message, result], tools=[tool],
                                     max_tokens=8))
        assert same[0].text == same[1].text
        assert same[0].stats.prompt_tokens == same[1].stats.prompt_tokens
        assert same[0].stats.prompt_tokens > first.stats.prompt_tokens + 40


@pytest.mark.parametrize(('tool', 'code', 'words'), [
    ({'interface': 'Twist'}, ErrorCode.INVALID_CONSTRAINT, "tools[0].interface: 'Twist' is no"),
    ({'interface': 'std_srvs/srv/SetBool', 'parameters': '{}'}, ErrorCode.INVALID_REQUEST,
     'tools[0] (go) has parameters and an interface'),
    ({'bounds': '{}'}, ErrorCode.INVALID_REQUEST, 'bounds without an interface'),
    ({'interface': 'std_srvs/srv/SetBool', 'bounds': '{"x": {}}'}, ErrorCode.INVALID_CONSTRAINT,
     "tools[0].interface: bounds names 'x', but the fields are data"),
    ({'parameters': '[]'}, ErrorCode.INVALID_REQUEST, 'the schema of an object'),
    ({'name': 'dr ive'}, ErrorCode.INVALID_REQUEST, 'tools[0].name'),
])
def test_refused(node: RunningNode, tool: dict[str, str], code: ErrorCode, words: str) -> None:
    from flash_llm_msgs.msg import Tool
    from flash_llm_msgs.srv import GenerateText

    answer = node.client.generate_text(fill(GenerateText.Request(), tools=[
        Tool(**{'name': 'go', **tool})]))
    assert answer.error.code == code and words in answer.error.message
    assert not answer.tool_calls and answer.finish_reason == FinishReason.ERROR


def test_what_the_model_reads_of_an_interface() -> None:
    """As short as can be: what is left to choose, with the bounds."""
    from flash_llm_ros.node.interfaces.interface_schema import interface_outline

    assert json.loads(interface_outline('geometry_msgs/msg/Twist', json.dumps({
        'linear.x': {'minimum': -0.3, 'description': 'm/s, ahead'}, 'linear.y': {'const': 0},
        'linear.z': {'const': 0}, 'angular': {'const': {'x': 0, 'y': 0, 'z': 0}}}))) == {
        'type': 'object', 'properties': {'linear': {
            'type': 'object', 'required': ['x'], 'properties': {
                'x': {'type': 'number', 'minimum': -0.3, 'description': 'm/s, ahead'}}}},
        'required': ['linear']}
    outline = json.loads(interface_outline('flash_llm_msgs/action/GenerateText'))
    assert outline['properties']['messages']['items']['properties']['role'] == {'type': 'string'}
    assert 'priority' not in outline['required'] and 'prompt' in outline['required']
