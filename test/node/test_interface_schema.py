"""A ROS interface as a schema, and its answer as a message."""

import json
import math

from jsonschema import Draft202012Validator
import pytest
from refusals import assert_error

from bench.request.schema_walk import Walk, compact
from flash_llm_ros.store.errors import ErrorCode

pytestmark = pytest.mark.ros


def schema(name: str, **bounds: dict) -> dict:
    from flash_llm_ros.node.interfaces.interface_schema import interface_schema

    return json.loads(interface_schema(name, json.dumps(bounds) if bounds else ''))


def as_plain(message: object) -> object:
    """A message as JSON has it, by its fields alone."""
    if hasattr(message, 'get_fields_and_field_types'):
        return {name: as_plain(getattr(message, name))
                for name in message.get_fields_and_field_types()}
    if isinstance(message, bytes):
        return message[0]
    return message if isinstance(message, str) or not hasattr(message, '__iter__') else [
        as_plain(item) for item in message]


def messages() -> list[object]:
    """One of every kind of field."""
    from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
    from geometry_msgs.msg import PoseWithCovariance, Twist
    from sensor_msgs.msg import JointState
    from std_msgs.msg import Empty
    from std_srvs.srv import SetBool

    from flash_llm_msgs.action import GenerateText
    from flash_llm_msgs.msg import ChatMessage

    twist, pose, joints = Twist(), PoseWithCovariance(), JointState()
    twist.linear.x, twist.angular.z = 0.25, -1.5
    pose.covariance[35] = 0.5
    joints.header.stamp.sec, joints.header.stamp.nanosec = -2 ** 31, 2 ** 32 - 1
    joints.name, joints.position = ['a', 'größe "b"'], [0.7, -3.1]
    status = DiagnosticStatus(level=b'\2', name='arm', values=[KeyValue(key='k', value='v')])
    goal = GenerateText.Goal(prompt='x', messages=[ChatMessage(role='user', content='y')])
    return [twist, pose, joints, DiagnosticArray(status=[status]), goal, SetBool.Request(data=True),
            Empty()]


def name_of(message: object) -> str:
    package, folder = type(message).__module__.split('.')[:2]
    kind = type(message).__name__.removesuffix('_Goal').removesuffix('_Request')
    return f'{package}/{folder}/{kind}'


def test_every_message_can_be_the_answer_and_comes_back() -> None:
    from flash_llm_ros.client import message_from

    walk = Walk()
    for message in messages():
        made, text = schema(name_of(message)), compact(as_plain(message))
        Draft202012Validator.check_schema(made)
        Draft202012Validator(made).validate(json.loads(text))
        walk.constrain('JSON_SCHEMA', json.dumps(made))
        assert walk.reaches(text), text
        assert message_from(type(message), text) == message


def test_ranges_bounds_and_defaults() -> None:
    judge = Draft202012Validator(schema(
        'sensor_msgs/msg/JointState', **{'header.stamp.sec': {'minimum': 5},
                                         'position': {'items': {'maximum': 0.75}}}))
    good = {'header': {'stamp': {'sec': 5, 'nanosec': 0}, 'frame_id': ''}, 'name': [],
            'position': [0.7], 'velocity': [], 'effort': []}
    assert judge.is_valid(good)
    for name, value in (('position', [0.76]), ('name', [1]), ('other', 0),
                        ('header', {'stamp': {'sec': 4, 'nanosec': 0}, 'frame_id': ''}),
                        ('header', {'stamp': {'sec': 5, 'nanosec': 2 ** 32}, 'frame_id': ''})):
        assert not judge.is_valid({**good, name: value}), name
    sampling = schema('flash_llm_msgs/msg/SamplingOptions')['$defs'][
        'flash_llm_msgs.SamplingOptions']
    assert 'top_p' not in sampling['required'] and 'temperature' in sampling['required']


def test_what_a_message_cannot_carry_is_no_answer() -> None:
    """More than a float32 arrives as infinity, and a text ends at its first NUL."""
    from rclpy.serialization import deserialize_message, serialize_message
    from std_msgs.msg import Float32, String

    walk = Walk()
    for kind, right, wrong in (
            (Float32, ('0.25', '-1000', '123456'), ('1e39', '-1e300', '1' + '0' * 39)),
            (String, (r'"a\u0001ß"', r'"\"\n"'), (r'"a\u0000b"',))):
        walk.constrain('JSON_SCHEMA', json.dumps(schema(f'std_msgs/msg/{kind.__name__}')))
        for text in wrong:
            sent = kind(check_fields=False,      # an int is no float
                        data=type(kind().data)(json.loads(text)))
            arrived = deserialize_message(serialize_message(sent), kind)
            assert arrived.data in (math.inf, -math.inf, 'a')
            assert not walk.reaches(f'{{"data":{text}}}'), text
        for text in right:
            assert walk.reaches(f'{{"data":{text}}}'), text


@pytest.mark.parametrize(('name', 'bounds', 'words'), [
    ('Twist', '', 'such as geometry_msgs/msg/Twist'),
    ('os/msg/Path', '', 'not installed'), ('geometry_msgs/msg/Nothing', '', 'not installed'),
    ('geometry_msgs/msg/TWIST', '', 'not installed'), ('std_srvs/srv/EMPTY', '', 'not installed'),
    pytest.param('geometry_msgs/msg/Twist', '[' * 100_000, 'nested too deeply', id='deep'),
    pytest.param('geometry_msgs/msg/Twist', f'{{"linear.x": {"[" * 990}{"]" * 990}}}',
                 'nested too deeply', id='deep bound'),
    ('geometry_msgs/msg/Twist', '{', 'no JSON'), ('geometry_msgs/msg/Twist', '[]', 'an object'),
    ('geometry_msgs/msg/Twist', '{"linear.q": {}}', 'the fields are x, y, z'),
    ('geometry_msgs/msg/Twist', '{"linear.x.y": {}}', 'x has no fields'),
    ('geometry_msgs/msg/Twist', '{"linear.": {}}', 'the fields are x, y, z'),
    pytest.param('std_msgs/msg/S' + 't' * 5000, '', 'such as geometry_msgs/msg/Twist', id='long'),
])
def test_refused(name: str, bounds: str, words: str) -> None:
    from flash_llm_ros.node.interfaces.interface_schema import interface_schema

    with assert_error(ErrorCode.INVALID_CONSTRAINT, words):
        interface_schema(name, bounds)


def test_an_answer_that_is_no_such_message() -> None:
    from geometry_msgs.msg import Twist

    from flash_llm_msgs.msg import SamplingOptions
    from flash_llm_ros.client import message_from

    for kind, text in (
            (Twist, '[' * 10**5), (Twist, '{'), (Twist, '{"linear":{"q":1}}'),
            (Twist, '{"linear":3}'), (Twist, '{"linear":{"x":1e999}}'),
            (Twist, '{"linear":{"x":1%s}}' % ('0' * 400)), (Twist, '{"linear":{"x":NaN}}'),
            (SamplingOptions, '{"stop":"ab"}'), (SamplingOptions, r'{"stop":["a\u0000"]}'),
            (SamplingOptions, r'{"stop":["\ud800"]}')):
        with pytest.raises(ValueError, match=f'is no {kind.__name__}'):
            message_from(kind, text)
