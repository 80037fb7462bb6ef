"""~/sentences of a real node: whole sentences of what is to be spoken, and of nothing else."""

from collections.abc import Iterator
import queue

import pytest
from ros_fixtures import RunningNode
from test_node_requests import goal

from flash_llm_ros.engine import FinishReason
from flash_llm_ros.store.errors import ErrorCode

pytestmark = pytest.mark.ros
WAIT = 30.0


@pytest.fixture(scope='module')
def spoken(active_node: RunningNode) -> Iterator[queue.SimpleQueue]:
    """What a voice hears."""
    from std_msgs.msg import String

    from flash_llm_ros.client.qos import SENTENCES

    heard: queue.SimpleQueue[str] = queue.SimpleQueue()
    graph = active_node.client.node
    subscription = graph.create_subscription(
        String, '/flash_llm/sentences', lambda text: heard.put(text.data), SENTENCES)
    active_node.client.until(lambda: graph.count_publishers('/flash_llm/sentences'), WAIT, 'it')
    while heard.empty():        # discovery on both sides
        active_node.client.send_goal(goal('[say] Hello.', 1, speak=True)).result(WAIT)
    yield heard
    graph.destroy_subscription(subscription)


def said(active_node: RunningNode, spoken: queue.SimpleQueue) -> list[str]:
    """What was heard, up to a request's own end, and nothing behind it."""
    active_node.client.send_goal(goal('[say] Over.', 1, speak=True)).result(WAIT)
    return list(iter(lambda: spoken.get(timeout=WAIT), 'Over.'))


def test_sentences_come_whole_and_the_rest_at_the_end(active_node, spoken) -> None:
    from flash_llm_msgs.srv import GenerateText

    said(active_node, spoken)
    client, text = active_node.client, 'I am Dr. No. It is 3.14 m away! And then'
    result = client.send_goal(goal(f'[say] {text}', len(text.split()), speak=True)).result(WAIT)[1]
    assert result.finish_reason == FinishReason.LENGTH and result.text == text
    wanted = ['I am Dr. No.', 'It is 3.14 m away!', 'And then']
    assert said(active_node, spoken) == wanted
    ask = GenerateText.Request(prompt=f'[say] {text}', speak=True)
    ask.sampling.max_tokens = len(text.split())
    assert client.generate_text(ask).text == text
    assert said(active_node, spoken) == wanted
    assert client.ask('[say] Hello there. You', WAIT).text == 'Hello there. You'
    assert said(active_node, spoken) == ['Hello there.', 'You']


def test_a_sentence_comes_before_its_answer_ends_and_none_after_a_cancel(active_node,
                                                                         spoken) -> None:
    said(active_node, spoken)
    text = 'I go. You stay. ' + 'And on ' * 50
    run = active_node.client.send_goal(goal(f'[piece=0.1] [say] {text}', 100, speak=True))
    assert [spoken.get(timeout=WAIT), spoken.get(timeout=WAIT)] == ['I go.', 'You stay.']
    run.cancel()
    assert run.result(WAIT)[1].finish_reason == FinishReason.CANCELLED
    assert said(active_node, spoken) == []
    run = active_node.client.send_goal(goal('[fault] [say] One. Two', 4, speak=True))
    assert run.result(WAIT)[1].error.code == ErrorCode.READ_FAILED
    assert said(active_node, spoken) == []


def test_only_what_is_to_be_spoken_is(active_node, spoken) -> None:
    said(active_node, spoken)
    client = active_node.client
    assert client.send_goal(goal('[say] Quiet. Please.', 2)).result(WAIT)[1].text
    assert said(active_node, spoken) == []
    constrained = goal('Hello', speak=True)
    constrained.constraint.kind, constrained.constraint.text = 2, 'a+'
    error = client.send_goal(constrained).result(WAIT)[1].error
    assert error.code == ErrorCode.INVALID_REQUEST and 'speak is true' in error.message


def test_without_a_listener_nothing_is_looked_at() -> None:
    from flash_llm_ros.node.interfaces.topics import _Spoken
    from flash_llm_ros.node.work.request import Chunk

    class Unheard:
        def get_subscription_count(self) -> int:
            return 0

    outlet = _Spoken(Unheard())
    outlet.started()
    outlet.chunk(Chunk('1', 0, 'Hello. You', FinishReason.STOP))
    assert outlet._splitter is None
