"""The examples that need no particular model, each in a process of its own beside a real node."""

from collections.abc import Iterator
import os
from pathlib import Path
import queue
import subprocess
import sys
import time

import pytest
from ros_fixtures import EXAMPLES, RunningNode, example, running_node

from flash_llm_ros.cli.bag import read_strings, write_bag

pytestmark = [pytest.mark.ros, pytest.mark.timeout(120)]
WAIT = 60.0
CHOICES = {'wait', 'go around', 'ask for help'}


@pytest.fixture(scope='module')
def node(int8_store: Path) -> Iterator[RunningNode]:
    with running_node(int8_store, dram_budget='60MB', structured=True, context_length=512) as node:
        yield node.activate()


class Topics:
    """What goes in and out of an example."""

    def __init__(self, node: RunningNode, into: str, out_of: str) -> None:
        from rclpy.qos import DurabilityPolicy, QoSProfile
        from std_msgs.msg import String

        self._client, self._text, graph = node.client, String, node.client.node
        self.out: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._in = graph.create_publisher(String, into, 1000)
        volatile = QoSProfile(depth=10, durability=DurabilityPolicy.VOLATILE)
        graph.create_subscription(String, out_of, lambda text: self.out.put(text.data), volatile)
        node.client.until(lambda: self._in.get_subscription_count() > 0
                          and graph.count_publishers(out_of) > 0, WAIT, 'the example')
        time.sleep(0.5)     # for its side to see this one

    def put(self, text: str) -> None:
        self._in.publish(self._text(data=text))


def test_an_answer_is_a_message(node: RunningNode) -> None:
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / 'interface_answer.py'), 'Drive!'], capture_output=True,
        env={**os.environ, 'ROS_DOMAIN_ID': str(node.domain), 'PYTHONPATH': ':'.join(sys.path)},
        text=True, check=False, timeout=WAIT)
    assert done.returncode == 0 and done.stdout.startswith('geometry_msgs.msg.Twist('), done


def test_a_bag_of_log_lines_becomes_summaries(node: RunningNode, tmp_path: Path) -> None:
    """More lines than fit into a context of 512 tokens, and one that never does."""
    from rclpy.serialization import serialize_message
    from std_msgs.msg import Empty, String

    lines = [f'{index:03d} waypoint reached' for index in range(11)] + ['x' * 3000]
    with write_bag(tmp_path / 'bag') as bag:
        for line in lines:
            bag.add('/mission_log', 'std_msgs/msg/String',
                    serialize_message(String(data=line)))
    with example('mission_log_summary.py', node, lines=4, max_tokens=5) as process:
        topics = Topics(node, '/mission_log', '/mission_summary')
        end = node.client.node.create_publisher(Empty, '/mission_end', 10)
        node.client.until(lambda: end.get_subscription_count() > 0, WAIT, 'the example')
        for line in read_strings(tmp_path / 'bag', '/mission_log'):
            topics.put(line)
        end.publish(Empty())
        summed_up = 0
        for printed in process.stdout:
            if 'summed up' in printed:
                summed_up += int(printed.split('lines summed up')[0].split()[-1])
                assert topics.out.get(timeout=WAIT) != ''
            assert 'No summary' not in printed
            if summed_up == len(lines):
                break
        assert summed_up == len(lines)


def test_a_tree_decides_by_the_model(node: RunningNode) -> None:
    with example('behaviour_tree.py', node, deadline=WAIT):
        topics = Topics(node, '/situation', '/decision')
        for situation in ('The door ahead is closed.', 'Somebody stands in the way.'):
            topics.put(situation)
            assert topics.out.get(timeout=WAIT) in CHOICES
        assert topics.out.empty()


def test_a_tree_falls_back_when_the_model_is_late(node: RunningNode) -> None:
    """A directive of the test's node makes the model late."""
    with example('behaviour_tree.py', node, deadline=0.5) as process:
        topics = Topics(node, '/situation', '/decision')
        topics.put('[prefill=3] The door ahead is closed.')
        assert topics.out.get(timeout=WAIT) == 'wait'
        assert any('No answer' in line for line in process.stdout if 'Decision' not in line)
        assert topics.out.empty()


def test_a_tree_falls_back_without_a_node(node: RunningNode) -> None:
    with example('behaviour_tree.py', node, deadline=0.5, server='nobody'):
        topics = Topics(node, '/situation', '/decision')
        topics.put('The door ahead is closed.')
        assert topics.out.get(timeout=WAIT) == 'wait'
