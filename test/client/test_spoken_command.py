"""The example of spoken commands, in a process of its own, with SmolLM2 in another."""

from collections.abc import Iterator
import contextlib
import json
from pathlib import Path
import queue
import re
import signal
import time

from jsonschema import Draft202012Validator
import pytest
from ros_fixtures import EXAMPLES, RunningNode, example, running_node

pytestmark = [pytest.mark.ros, pytest.mark.timeout(180)]
SCHEMA = json.loads((EXAMPLES / 'motion_command.schema.json').read_text())
WAIT = 60.0
LONGEST_MOTION = 3.0    # s


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

    def until_it_stands(self) -> int:
        """Return how often it was told to move before."""
        moves = 0
        while self.velocity() != (0, 0):
            moves += 1
        return moves

    def expect_rest(self) -> None:
        while not self.velocities.empty():
            assert self.velocity() == (0, 0)

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
    last = None                             # whoever leaves, leaves the robot standing
    with contextlib.suppress(queue.Empty):
        while True:
            last = robot.velocities.get(timeout=1)
    assert (last.linear.x, last.angular.z) == (0, 0)


@pytest.fixture
def robot_of_one_command(node: RunningNode) -> Iterator[Robot]:
    """Beside another node, which knows 'Go' alone."""
    from rclpy.action import ActionServer, CancelResponse

    from flash_llm_msgs.action import GenerateText

    def answer(handle: object) -> GenerateText.Result:
        handle.succeed()
        return GenerateText.Result(
            text='{"action":"forward","speed":"fast","seconds":9}', finish_reason=1)

    server = ActionServer(
        node.client.node, GenerateText, '/parrot/generate', answer,
        handle_accepted_callback=lambda handle: handle.request.prompt == 'Go' and handle.execute(),
        cancel_callback=lambda handle: CancelResponse.ACCEPT)
    with example('spoken_command.py', node, server='parrot', longest_motion=LONGEST_MOTION,
                 stop_words='[basta, stop]'):
        robot = Robot(node.client)
        robot.wait_until_connected()
        robot.wait_until_heard()
        yield robot
    server.destroy()


def test_a_text_becomes_a_motion_that_ends(robot: Robot) -> None:
    robot.say(re.search(r'{data: (.*)}', (EXAMPLES / 'spoken_command.py').read_text())[1])
    command = json.loads(robot.commands.get(timeout=WAIT))
    Draft202012Validator(SCHEMA).validate(command)
    # The example's own line, by the demo's model.
    assert command == {'action': 'forward', 'speed': 'slow', 'seconds': 3}
    assert robot.velocity() == (0, 0)       # before it was understood
    assert robot.velocity() == (0.1, 0)
    assert robot.until_it_stands() <= 10 * command['seconds'] + 1


STOPS = ('Stop now!', 'I said STOP, you thing', 'Bitte sofort anhalten', 'Arrêtez-vous',
         'arre\u0302te', 'Párate ya', 'ｓｔｏｐ', '停下来', '멈춰요', 'Don’t  move')


def test_a_text_with_a_stop_word_needs_no_model(robot: Robot) -> None:
    for text in STOPS:
        robot.say(text)
        assert robot.velocity() == (0, 0), text
    robot.say('Go forward slowly for one second.')      # the only one that the model hears of
    robot.commands.get(timeout=WAIT)
    assert robot.commands.empty()


def test_a_motion_ends_by_itself_and_by_any_text(robot_of_one_command: Robot) -> None:
    """Nine seconds are said; the node that says so has no answer to anything but 'Go'."""
    robot = robot_of_one_command

    def go() -> None:
        robot.say('Go')
        assert json.loads(robot.commands.get(timeout=WAIT))['seconds'] == 9
        assert robot.velocity() == (0, 0)       # while it was not understood
        assert robot.velocity() == (0.6, 0)

    go()
    assert robot.until_it_stands() <= 10 * LONGEST_MOTION + 1
    for text in ('Basta così!', 'Hm.'):         # a stop word; what nobody understands
        go()
        robot.say(text)
        robot.until_it_stands()
        time.sleep(0.5)
        robot.expect_rest()
        assert robot.commands.empty()


@pytest.mark.parametrize('robot', [0.05], indirect=True)
def test_too_late_means_standing_still(robot: Robot) -> None:
    robot.say('Go forward fast. ' * 8)
    assert robot.velocity() == (0, 0)
    time.sleep(0.5)
    assert robot.commands.empty() and robot.velocities.empty()
