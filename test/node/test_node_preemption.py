"""Priorities, `when_busy` and the duty cycle through a real node."""

import pytest
from ros_fixtures import running_node
from ros_parameters import set_parameter
from test_node_requests import LONG, goal

from flash_llm_ros.engine import FinishReason
from flash_llm_ros.store.errors import ErrorCode

pytestmark = pytest.mark.ros
SLOW = 'Tell me of the sea. [piece=0.02]'
SLOW_PREFILL = 'The robot drives along the wall of the hall. ' * 5 + '[piece=0.03]'


@pytest.fixture(scope='module')
def node(int8_store):
    with running_node(int8_store, prefill_chunk=16) as node:
        yield node.activate()


@pytest.fixture
def client(node):
    yield node.client
    for name, value in (('requests.when_busy', 'queue'), ('compute.duty_cycle', 1.0),
                        ('compute.max_threads', 256)):
        assert set_parameter(node.client, name, value) == ''


def alone(client, ask):
    return client.send_goal(ask).result(60)[1].text


def started(client, ask):
    """Send a goal and wait for its first chunk."""
    run = client.send_goal(ask)
    client.until(lambda: run.chunks, 30, 'the first chunk')
    return run


@pytest.mark.parametrize('prompt', [SLOW, SLOW_PREFILL], ids=['decode', 'prefill'])
def test_a_higher_priority_goes_first_and_changes_nothing(client, prompt):
    from flash_llm_ros.client.operator import SUCCEEDED

    options = {'temperature': 0.8, 'top_k': 40, 'seed': 11}
    whole = alone(client, goal(prompt, 40, **options))
    before = client.status
    low = client.send_goal(goal(prompt, 40, **options))
    if prompt == SLOW:
        client.until(lambda: len(low.chunks) > 2, 30, 'chunks')
    high = client.send_goal(goal('Stop!', 10, priority=200))
    status, result = high.result(30)
    assert (status, len(result.text), result.stats.preemptions) == (SUCCEEDED, 10, 0)
    assert not low.done
    status, result = low.result(60)
    assert (status, result.text) == (SUCCEEDED, whole)
    assert ''.join(chunk.text for chunk in low.chunks[:-1]) in whole
    assert result.stats.preemptions == 1
    assert result.stats.total_time > result.stats.queue_time
    client.until(lambda: client.status.preemptions > before.preemptions, 10, 'the count')


def test_keep_last_and_interrupt(client):
    from flash_llm_ros.client.operator import ABORTED

    before = client.status
    assert set_parameter(client, 'requests.when_busy', 'keep_last') == ''
    running = started(client, goal(SLOW, LONG))
    older = client.send_goal(goal('older', 5))
    newest = client.send_goal(goal('newest', 5))
    status, result = older.result(30)
    assert (status, result.finish_reason, result.error.code) == (
        ABORTED, FinishReason.CANCELLED, ErrorCode.REPLACED)
    assert set_parameter(client, 'requests.when_busy', 'interrupt') == ''
    interrupting = client.send_goal(goal('now', 5))
    status, result = running.result(30)
    assert (status, result.error.code) == (ABORTED, ErrorCode.REPLACED)
    assert result.text
    for run in (interrupting, newest):
        assert len(run.result(30)[1].text) == 5
    client.until(lambda: client.status.requests_done >= before.requests_done + 2, 10, 'the count')
    assert client.status.requests_cancelled >= before.requests_cancelled + 2


def test_slowed_down_it_says_the_same_and_is_still_cancelled_at_once(client):
    from flash_llm_ros.client.operator import CANCELED

    whole = alone(client, goal('Hello', 30))
    assert set_parameter(client, 'compute.duty_cycle', 0.5) == ''
    assert set_parameter(client, 'compute.max_threads', 1) == ''
    assert alone(client, goal('Hello', 30)) == whole
    assert set_parameter(client, 'compute.duty_cycle', 0.01) != ''      # out of range
    assert set_parameter(client, 'compute.duty_cycle', 0.05) == ''
    client.until(lambda: round(client.status.duty_cycle, 6) == 0.05, 10, 'the status')
    assert client.status.threads == 1
    # Two seconds of work for a chunk of the prompt, and 38 of rest.
    run = client.send_goal(goal('Hello [piece=2]', LONG))
    client.until(lambda: client.status.state == client.status.PREFILL, 30, 'the first chunk')
    assert run.cancel()
    assert run.result(30)[0] == CANCELED
    assert set_parameter(client, 'compute.duty_cycle', 1.0) == ''
    assert alone(client, goal('Hello', 30)) == whole
