"""What requests leave behind in the node, and what it holds of messages that are too large."""

from dataclasses import asdict
import json
import os
from pathlib import Path
import subprocess
import sys

import pytest
from ros_fixtures import RunningNode, running_node
from test_node_requests import goal

pytestmark = pytest.mark.ros
LARGE = 1_000_000       # bytes
TOLERANCE = 16_000_000  # bytes beside the budget


def test_texts_are_forgotten() -> None:
    """rclpy keeps a goal's message for as long as its result."""
    from flash_llm_msgs.action import GenerateText
    from flash_llm_msgs.msg import ChatMessage
    from flash_llm_ros.node.interfaces.conversions import forget_texts

    ask = GenerateText.Goal(prompt='a', system_prompt='b', session_id='c', deadline=3.0)
    ask.messages = [ChatMessage(role='user', content='d')]
    ask.sampling.stop, ask.sampling.seed = ['e'], 7
    ask.constraint.text, ask.constraint.choices = 'f', ['g']
    forget_texts(ask)
    expected = GenerateText.Goal(deadline=3.0)
    expected.sampling.seed = 7
    assert ask == expected


def ask_many(node: RunningNode, count: int) -> None:
    from flash_llm_msgs.srv import GenerateText

    for _ in range(count // 3):
        _, result = node.client.send_goal(goal('Hello', 2)).result(60)
        assert result.error.code == 0
        run = node.client.send_goal(goal('Hello', 200))
        run.cancel()
        run.result(60)
        call = GenerateText.Request(prompt='Hello')
        call.sampling.max_tokens = 2
        assert node.client.generate_text(call).error.code == 0


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_requests_leave_no_object_behind(int8_store: Path, tmp_path: Path) -> None:
    counted = tmp_path / 'objects'
    with running_node(int8_store, environment={'TEST_OBJECTS': str(counted)}) as node:
        node.activate()
        ask_many(node, 60)

        def counts() -> list[int]:
            return [int(line) for line in counted.read_text().splitlines(keepends=True)
                    if line.endswith('\n')]

        def settled_count() -> int:     # results are kept for a second
            node.client.until(lambda: not node.client.status.queue_length, 10, 'an idle node')
            first = len(counts())
            node.client.until(lambda: len(counts()) >= first + 10, 120, 'ten counts')
            return min(counts()[first + 2:])        # timers at work have some more now and then

        before = settled_count()
        assert before > 10_000          # of Python and ROS: it is counted
        ask_many(node, 300)
        assert settled_count() <= before + 100


@pytest.mark.slow
def test_large_messages_are_not_kept(int8_store: Path) -> None:
    from flash_llm_msgs.msg import ChatMessage
    from flash_llm_msgs.srv import GenerateText

    with running_node(int8_store) as node:
        client = node.activate().client
        ask_many(node, 30)
        client.send_goal(goal('x' * LARGE, 2)).result(60)
        before = node.process.memory('VmRSS')
        for _ in range(40):         # 120 MB in all, while their results are kept
            _, result = client.send_goal(goal('x' * LARGE, 2)).result(60)
            assert 'characters' in result.error.message
            answer = client.generate_text(GenerateText.Request(system_prompt='y' * LARGE))
            assert 'characters' in answer.error.message
            client.publish_prompt('z' * LARGE)
        # An error that quotes them is in every status until the next request.
        roles = [ChatMessage(role='r' * LARGE, content='a')]
        answer = client.generate_text(GenerateText.Request(messages=roles))
        assert "role is 'rrr" in answer.error.message and len(answer.error.message) < 5000
        assert node.process.memory('VmRSS') - before < 10 * LARGE


@pytest.mark.slow
def test_what_dds_held_of_a_flood_is_given_back(int8_store: Path) -> None:
    """Of eight clients that send 1 MB to every interface without a pause."""
    from bench.node.flood import Load
    from bench.support.worker import ROOT

    with running_node(int8_store) as node:
        client = node.activate().client
        ask_many(node, 9)
        before = node.process.memory('VmRSS')
        load = json.dumps(asdict(Load(node.domain, 4.0)))
        flood = subprocess.run([sys.executable, '-m', 'bench.node.flood', load], check=True,
                               stdout=subprocess.PIPE, cwd=ROOT)
        assert all(count >= 8 for count in json.loads(flood.stdout.splitlines()[-1]).values())
        client.until(lambda: node.process.memory('VmRSS') - before < TOLERANCE, 60,
                     'memory that is given back')
        ask_many(node, 3)


def test_profiles_of_the_robot_win(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from flash_llm_ros.node.dds_profile import PROFILE, use_dds_profile

    own, used = 'FASTRTPS_DEFAULT_PROFILES_FILE', 'RMW_FASTRTPS_USE_QOS_FROM_XML'
    in_folder = tmp_path / 'DEFAULT_FASTRTPS_PROFILES.xml'
    monkeypatch.chdir(tmp_path)
    for given, file in (({own: 'robot.xml'}, False), ({used: '0'}, False), ({}, True), ({}, False)):
        for name in (own, used):
            monkeypatch.delenv(name, raising=False)
        for name, value in given.items():
            monkeypatch.setenv(name, value)
        if file:
            in_folder.touch()
        use_dds_profile()
        expected = given if given or file else {own: str(PROFILE), used: '1'}
        assert {name: os.environ[name] for name in (own, used) if name in os.environ} == expected
        in_folder.unlink(missing_ok=True)
    assert PROFILE.is_file()
