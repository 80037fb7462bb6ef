"""The example of spoken commands, in a process of its own, with SmolLM2 in another."""

from collections.abc import Iterator
import json
from pathlib import Path
import queue
import signal
import time

from jsonschema import Draft202012Validator
import pytest
from ros_fixtures import EXAMPLES, RunningNode, example, running_node

pytestmark = [pytest.mark.ros, pytest.mark.timeout(180)]
SCHEMA = json.loads((EXAMPLES / 'motion_command.schema.json').read_text())
WAIT = 60.0


class Robot:
    """Says things to the example and sees what it makes the robot do."""

    def __init__(self, client: object) -> None:
        from geometry_msgs.msg import Twist
        from std_msgs.msg import String

        self._client, self._text = client, String
        self.velocities, self.commands = queue.SimpleQueue(), queue.SimpleQueue()
        node = client.node
        self._heard = node.create_publisher(String, '/heard', 10)
        node.create_subscription(Twist, '/cmd_vel', self.velocities.put, 10)
        node.create_subscription(
            String, '/motion_command', lambda message: self.commands.put(message.data), 10)

    def wait_until_connected(self) -> None:
        node = self._client.node
        self._client.until(lambda: self._heard.get_subscription_count() > 0
                           and node.count_publishers('/cmd_vel') > 0, WAIT, 'the example')

    def wait_until_heard(self) -> None:
        """Both topics are matched on both sides once this word has come through."""
        limit = time.monotonic() + WAIT
        while self.velocities.empty():
            assert time.monotonic() < limit, 'the example does not stop'
            self.say('Stop!')
            time.sleep(0.5)
        while not self.velocities.empty():
            self.velocities.get()

    def say(self, text: str) -> None:
        self._heard.publish(self._text(data=text))

    def velocity(self) -> tuple[float, float]:
        twist = self.velocities.get(timeout=WAIT)
        return twist.linear.x, twist.angular.z


@pytest.fixture(scope='module')
def node(real_store: Path) -> Iterator[RunningNode]:
    with running_node(real_store, dram_budget='200MB', structured=True,
                      context_length=256) as node:
        yield node.activate()


@pytest.fixture
def robot(node: RunningNode, request: pytest.FixtureRequest) -> Iterator[Robot]:
    deadline = getattr(request, 'param', WAIT)
    with example('spoken_command.py', node, signal.SIGTERM, deadline=deadline):
        robot = Robot(node.client)
        robot.wait_until_connected()
        robot.wait_until_heard()
        yield robot
    assert robot.velocity() == (0, 0)       # whoever leaves, leaves the robot standing
    while not robot.velocities.empty():
        assert robot.velocity() == (0, 0)


def test_a_text_becomes_a_motion_that_ends(robot: Robot) -> None:
    robot.say('Go forward slowly for one second.')
    command = json.loads(robot.commands.get(timeout=WAIT))
    Draft202012Validator(SCHEMA).validate(command)
    ahead, turn = robot.velocity()
    right = {'forward': (ahead > 0, turn == 0), 'backward': (ahead < 0, turn == 0),
             'turn_left': (ahead == 0, turn > 0), 'turn_right': (ahead == 0, turn < 0),
             'stop': (ahead == 0, turn == 0)}
    assert right[command['action']] == (True, True), (command, ahead, turn)
    count = 1
    while (ahead, turn) != (0, 0):
        ahead, turn = robot.velocity()
        count += 1
    assert command['action'] == 'stop' or count == 10 * command['seconds'] + 1


def test_the_word_stop_needs_no_model(robot: Robot) -> None:
    robot.say('Stop!')
    assert robot.velocity() == (0, 0)
    assert robot.commands.empty()


@pytest.mark.parametrize('robot', [0.05], indirect=True)
def test_too_late_means_standing_still(robot: Robot) -> None:
    robot.say('Go forward fast. ' * 8)
    assert robot.velocity() == (0, 0)
    time.sleep(0.5)
    assert robot.commands.empty() and robot.velocities.empty()
