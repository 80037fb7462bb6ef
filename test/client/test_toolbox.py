"""Tools of a simulated robot, asked for by a scripted model: the loop, its limits, the example."""

from collections.abc import Callable, Iterator
import json
from pathlib import Path
import queue
import threading
import time

from jsonschema import Draft202012Validator
import pytest
from ros_fixtures import RunningNode, example, new_domain

pytestmark = [pytest.mark.ros, pytest.mark.timeout(120)]
WAIT = 60.0
# The wheels have one action type; here it drives to the place that its prompt names.
DRIVE = 'flash_llm_msgs/action/GenerateText'


class Robot:
    """Drives, has a lamp and a voice; and a model that says what its script says."""

    def __init__(self, domain: int) -> None:
        from rclpy.action import ActionServer, CancelResponse
        from rclpy.callback_groups import ReentrantCallbackGroup
        from rclpy.executors import MultiThreadedExecutor
        from std_msgs.msg import String
        from std_srvs.srv import SetBool

        from flash_llm_msgs.action import GenerateText
        from flash_llm_ros.client.own_node import OwnNode

        self.script: list[object] = []      # a result, or what gives one of the goal
        self.goals: list[object] = []       # of the model
        self.done: queue.SimpleQueue[tuple] = queue.SimpleQueue()
        self._own = OwnNode('robot', domain)
        node, group = self._own.node, ReentrantCallbackGroup()
        self._own.executor.remove_node(node)
        self._executor = MultiThreadedExecutor(4, context=node.context)
        self._executor.add_node(node)
        self._thread = threading.Thread(target=self._executor.spin, daemon=True)
        self._thread.start()

        def drive(handle: object) -> object:
            self.done.put(('drive', handle.request.prompt))
            while handle.request.prompt == 'nowhere' and not handle.is_cancel_requested:
                time.sleep(0.02)
            if handle.is_cancel_requested:
                handle.canceled()
                self.done.put(('cancelled',))
            elif handle.request.prompt == 'the wall':
                handle.abort()
            else:
                handle.succeed()
            return GenerateText.Result(text='arrived')

        def answer(handle: object) -> object:
            self.goals.append(handle.request)
            handle.succeed()
            return self.script.pop(0)

        def lamp(request: object, response: object) -> object:
            self.done.put(('lamp', request.data))
            response.success = True
            response.message = 'It is \ufffd' + 'x' * 5000 * (not request.data)
            return response

        self._servers = [ActionServer(
            node, GenerateText, name, act, callback_group=group,
            cancel_callback=lambda handle: CancelResponse.ACCEPT)
            for name, act in (('/drive_to', drive), ('/flash_llm/generate', answer))]
        node.create_service(SetBool, '/lamp', lamp, callback_group=group)
        node.create_subscription(String, '/say', lambda text: self.done.put(('say', text.data)), 10)
        self.node = node

    def close(self) -> None:
        self._executor.shutdown()
        self._thread.join()
        for server in self._servers:
            server.destroy()
        self._own.stop()
        self._own.destroy()


def asks_for(name: str, **arguments: object) -> object:
    from flash_llm_msgs.action import GenerateText
    from flash_llm_msgs.msg import ToolCall

    return GenerateText.Result(finish_reason=1, tool_calls=[
        ToolCall(id='abc123xyz', name=name, arguments=json.dumps(arguments))])


def says(text: str) -> object:
    from flash_llm_msgs.action import GenerateText

    return GenerateText.Result(finish_reason=1, text=text)


@pytest.fixture(scope='module')
def domain() -> int:
    return new_domain()


@pytest.fixture(scope='module')
def the_robot(domain: int) -> Iterator[Robot]:
    robot = Robot(domain)
    yield robot
    robot.close()


@pytest.fixture
def robot(the_robot: Robot) -> Robot:
    the_robot.script.clear()
    the_robot.goals.clear()
    assert the_robot.done.empty()
    return the_robot


@pytest.fixture(scope='module')
def tools(domain: int) -> Iterator[object]:
    from std_msgs.msg import String
    from std_srvs.srv import SetBool

    from flash_llm_ros.client import RobotTool, Toolbox

    with Toolbox([RobotTool('drive_to', 'Drives.', DRIVE, '/drive_to', {'raw': {'const': True}}),
                  RobotTool('lamp', 'Switches.', SetBool, '/lamp'),
                  RobotTool('say', 'Says.', String, '/say'),
                  RobotTool('sing', 'Sings.', String, '/sing', timeout=0.3)],
                 domain_id=domain) as tools:
        yield tools


@pytest.fixture(scope='module')
def run(tools: object, domain: int) -> Iterator[Callable[..., object]]:
    from flash_llm_ros.client import FlashLlmClient, run_tools

    with FlashLlmClient(domain_id=domain) as llm:
        yield lambda prompt, **options: run_tools(llm, tools, prompt, **{
            'deadline': WAIT, **options})


def test_an_action_a_service_and_a_topic(robot: Robot, run: Callable[..., object]) -> None:
    robot.script += [asks_for('drive_to', prompt='dock'), asks_for('lamp', data=True),
                     asks_for('say', data='Grüß Gott'), says('All is done.')]
    done = run('Work!', temperature=0.5)
    assert [robot.done.get(timeout=WAIT) for _ in range(3)] == [
        ('drive', 'dock'), ('lamp', True), ('say', 'Grüß Gott')]
    assert done.answer.text == 'All is done.'
    results = [json.loads(result) for _, result in done.done]
    assert results[0]['status'] == 'succeeded' and results[0]['result']['text'] == 'arrived'
    # What is no text in the robot's words would be refused in a request.
    assert results[1:] == [{'success': True, 'message': 'It is ?'}, {'published': True}]
    for count, goal in enumerate(robot.goals):
        assert [message.role for message in goal.messages] == ['user', *['assistant', 'tool']
                                                               * count]
        assert [tool.name for tool in goal.tools] == ['drive_to', 'lamp', 'say', 'sing']
        assert 0 < goal.deadline <= WAIT and goal.sampling.temperature == 0.5
    assert goal.tools[0].interface == DRIVE and goal.tools[0].bounds == '{"raw": {"const": true}}'
    assert goal.tools[1].interface == 'std_srvs/srv/SetBool'
    asked, told = goal.messages[3:5]
    assert asked.tool_calls[0].name == told.name == 'lamp' and not asked.content
    assert told.tool_call_id == asked.tool_calls[0].id and json.loads(told.content) == results[1]


def test_what_goes_wrong_is_told(robot: Robot, run: Callable[..., object]) -> None:
    robot.script += [asks_for('drive_to', prompt='the wall'), asks_for('sing', data='la'),
                     asks_for('lamp', data=3), asks_for('drive_to', prompt='\ud800'),
                     asks_for('lamp', data=False),
                     asks_for('drive_to', prompt='x'), says('No.')]
    done = run('Work!', may=lambda call: '"x"' not in call.arguments)
    assert [robot.done.get(timeout=WAIT) for _ in range(2)] == [('drive', 'the wall'),
                                                                ('lamp', False)]
    aborted, late, wrong, half, long, forbidden = (result for _, result in done.done)
    assert json.loads(aborted)['status'] == 'aborted'
    assert json.loads(late) == {'error': '/sing is not there.'}
    assert 'is no SetBool_Request' in json.loads(wrong)['error']
    assert 'half of a character' in json.loads(half)['error']
    assert len(long) < 2100 and long.endswith(' ...')
    assert json.loads(forbidden) == {'error': 'It was not allowed.'}


def test_calls_are_limited(robot: Robot, run: Callable[..., object]) -> None:
    robot.script += [asks_for('say', data='a'), asks_for('say', data='b'), says('Enough.')]
    assert run('Talk!', most_calls=2, session_id='s').answer.text == 'Enough.'
    assert [goal.tool_choice for goal in robot.goals] == ['auto', 'auto', 'none']
    assert [[message.role for message in goal.messages] for goal in robot.goals] == [
        ['user'], ['tool'], ['tool']]       # of a session the node has the rest
    assert {robot.done.get(timeout=WAIT) for _ in range(2)} == {('say', 'a'), ('say', 'b')}
    # Whatever a model answers, no more is done.
    both = asks_for('say', data='c')
    both.tool_calls += asks_for('say', data='d').tool_calls
    robot.script += [both, asks_for('say', data='e')]
    done = run('Talk!', most_calls=1)
    assert [result for _, result in done.done] == ['{"published": true}',
                                                   '{"error": "It was not allowed."}']
    assert done.answer.tool_calls[0].arguments == '{"data": "e"}'
    assert robot.done.get(timeout=WAIT) == ('say', 'c') and robot.done.empty()


def test_behind_the_deadline_nothing_goes_on(robot: Robot, run: Callable[..., object]) -> None:
    robot.script += [asks_for('drive_to', prompt='nowhere'), says('never asked')]
    with pytest.raises(TimeoutError, match='deadline of 3 s has passed after 1 call'):
        run('Go!', deadline=3.0)
    assert [robot.done.get(timeout=WAIT) for _ in range(2)] == [('drive', 'nowhere'),
                                                                ('cancelled',)]
    assert len(robot.goals) == 1
    robot.script.clear()
    late = says('I am')     # and what the model had no time for is no answer
    late.finish_reason = 4
    nothing = says('')
    nothing.finish_reason, nothing.error.code = 4, 13
    for answer in (late, nothing):
        robot.script.append(answer)
        with pytest.raises(TimeoutError, match='has passed after 0 calls'):
            run('Go!')


def test_only_what_is_on_the_list(robot: Robot, run: Callable[..., object], tools: object) -> None:
    from flash_llm_ros.client import RobotTool

    robot.script += [asks_for('format_disk')]
    with pytest.raises(ValueError, match="'format_disk' is not on the list of tools: drive_to"):
        run('Go!')
    for wrong, words in (({'interface': 'nav_msgs/action/Fly'}, 'is not installed here'),
                         ({'interface': 'os/path'}, 'is not installed'),
                         ({'interface': 'os/path/join'}, 'has to be the class of a message'),
                         ({'where': 'drive'}, 'from the root on'),
                         ({'where': '/a b'}, 'from the root on'), ({'where': '/'}, 'root on')):
        with pytest.raises(ValueError, match=words):
            RobotTool(**{'name': 'x', 'description': '', 'interface': DRIVE, 'where': '/x',
                         **wrong})


def test_the_example(robot: Robot, domain: int, tmp_path: Path) -> None:
    from types import SimpleNamespace

    from std_msgs.msg import String

    (tmp_path / 'tools.yaml').write_text(json.dumps([
        {'name': 'drive_to', 'description': 'Drives.', 'interface': DRIVE, 'where': '/drive_to'},
        {'name': 'lamp', 'description': 'x', 'interface': 'std_srvs/srv/SetBool',
         'where': '/lamp'}]))
    replies: queue.SimpleQueue[str] = queue.SimpleQueue()
    commands = robot.node.create_publisher(String, '/command', 10)
    robot.node.create_subscription(String, '/reply', lambda text: replies.put(text.data), 10)

    def until(is_so: Callable[[], bool], timeout: float, what: str) -> None:
        limit = time.monotonic() + timeout
        while not is_so():
            assert time.monotonic() < limit, what
            time.sleep(0.05)

    beside = RunningNode(None, SimpleNamespace(node=robot.node, until=until), domain)
    with example('tool_node.py', beside, tools=tmp_path / 'tools.yaml', deadline=WAIT):
        until(lambda: commands.get_subscription_count() > 0
              and robot.node.count_publishers('/reply') > 0, WAIT, 'the example')
        time.sleep(0.5)
        robot.script += [asks_for('lamp', data=True), says('It is on.'),
                         asks_for('dance'), asks_for('drive_to', prompt='nowhere')]
        commands.publish(String(data='Light!'))
        assert replies.get(timeout=WAIT) == 'It is on.'
        commands.publish(String(data='Dance!'))     # fails, and the next is heard
        commands.publish(String(data='Go!'))
        assert [robot.done.get(timeout=WAIT) for _ in range(2)] == [('lamp', True),
                                                                    ('drive', 'nowhere')]
    assert robot.done.get(timeout=WAIT) == ('cancelled',)       # whoever leaves, stops it
    assert robot.goals[0].system_prompt.startswith('You are a robot') and replies.empty()


def test_the_tools_of_the_example_are_as_their_interfaces_have_them() -> None:
    """As far as these are installed."""
    from ros_fixtures import EXAMPLES
    import yaml

    from flash_llm_ros.client import RobotTool
    from flash_llm_ros.node.interfaces.interface_schema import interface_schema

    for tool in yaml.safe_load((EXAMPLES / 'robot_tools.yaml').read_text()):
        if not tool['interface'].startswith('nav2_msgs'):
            message = RobotTool(**tool).message
            schema = json.loads(interface_schema(message.interface, message.bounds))
            Draft202012Validator.check_schema(schema)
            assert bool(schema.get('allOf')) == ('bounds' in tool)


def test_once_closed_it_is_closed(domain: int) -> None:
    from std_msgs.msg import Int8, String
    from std_srvs.srv import SetBool

    from flash_llm_msgs.msg import ToolCall
    from flash_llm_ros.client import RobotTool, Toolbox

    said = RobotTool('say', 'Says.', String, '/say')
    with Toolbox([said, RobotTool('lamp', 'Switches.', SetBool, '/lamp')],
                 domain_id=domain) as tools:
        tools.close()
        for name in ('say', 'lamp'):
            with pytest.raises(RuntimeError, match='The toolbox was closed'):
                tools.call(ToolCall(name=name, arguments='{"data": true}'), WAIT)
    threads = threading.active_count()
    # And what cannot be opened leaves nothing behind.
    for wrong in (RobotTool('sing', 'Sings.', String, '/say', {'data': WAIT, 'x': {1}}),
                  RobotTool('count', 'Counts.', Int8, '/say')):
        with pytest.raises((TypeError, RuntimeError)):
            Toolbox([said, wrong], domain_id=domain)
        assert threading.active_count() == threads


@pytest.mark.filterwarnings('ignore::pytest.PytestUnhandledThreadExceptionWarning')
def test_a_toolbox_whose_thread_has_ended_says_so(domain: int) -> None:
    from std_srvs.srv import SetBool

    from flash_llm_msgs.msg import ToolCall
    from flash_llm_ros.client import RobotTool, Toolbox

    with Toolbox([RobotTool('lamp', 'Switches.', SetBool, '/lamp')], domain_id=domain) as tools:
        tools._own.executor.create_task(lambda: 1 / 0)
        with pytest.raises(RuntimeError, match='its thread has ended'):
            tools.call(ToolCall(name='lamp', arguments='{"data": true}'), WAIT)
