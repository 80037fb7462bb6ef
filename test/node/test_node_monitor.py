"""~/status and /diagnostics, also while the node is busy."""

from importlib.metadata import version

import pytest
from ros_fixtures import INJECTING, running_node
from test_node_requests import goal

from flash_llm_ros.engine import FinishReason
from flash_llm_ros.store.errors import ErrorCode

pytestmark = pytest.mark.ros


def parts(client):
    """The node's statuses in the latest /diagnostics by what they are of."""
    return {status.name.partition(': ')[2]: status for status in client.diagnostics[-1].status
            if status.hardware_id == client.name}


def values(status):
    return {value.key: value.value for value in status.values}


def test_status_counts_what_happened(active_node):
    from flash_llm_msgs.msg import EngineStatus

    client = active_node.client
    before = client.status
    client.send_goal(goal('Hello', 12)).result(30)
    client.send_goal(goal('')).result(30)
    client.until(lambda: client.status.requests_failed > before.requests_failed, 10, 'status')
    status = client.status
    assert status.state == EngineStatus.IDLE
    assert status.requests_done == before.requests_done + 1
    assert status.tokens_generated == before.tokens_generated + 12
    assert status.error.code == ErrorCode.EMPTY_PROMPT
    assert status.dram_budget == 32_000_000
    assert 0 < status.window_bytes < status.dram_planned <= status.dram_budget
    assert 0 <= status.hit_rate <= 1 and status.active_fraction == 1.0
    assert status.window_hits + status.window_misses > 0
    assert status.mode == 'exact' and status.model
    resident = active_node.process.memory('VmRSS')
    assert abs(status.rss - resident) < 16e6
    assert client.send_goal(goal('Hello', 3)).result(30)[1].finish_reason == FinishReason.LENGTH
    client.until(lambda: client.status.error.code == ErrorCode.NONE, 10, 'the error to go')


def test_status_waits_for_late_joiners(active_node):
    from rclpy.qos import DurabilityPolicy

    client = active_node.client
    status, = client.node.get_publishers_info_by_topic(f'{client.name}/status')
    assert status.qos_profile.durability == DurabilityPolicy.TRANSIENT_LOCAL


def test_the_log_tells_what_a_person_at_the_console_needs(active_node, int8_store):
    """A SiLU model has no predictors, so that auto is exact."""
    client = active_node.client
    client.send_goal(goal('Hello', 2)).result(30)
    log = active_node.process.log()
    assert f'flash_llm_ros {version("flash_llm_ros")} as /flash_llm: unconfigured' in log
    ready = next(line for line in log.splitlines() if 'Configured in ' in line)
    assert f' of {int8_store} in 32 MB, mode exact: the model uses every neuron' in ready
    assert client.status.model in ready and '; reading with ' in ready
    assert 'Active: takes requests' in log and client.status.mode == 'exact'
    assert ': LENGTH' not in log        # each request is told at level debug


def test_a_simulation_that_stands_still_silences_nothing(int8_store):
    """Nobody publishes /clock: the node's clock is 0. Its log has each request at level debug."""
    from flash_llm_ros.cli.top import snapshot

    with running_node(int8_store, command=(*INJECTING, '--ros-args', '-r', '__ns:=/robot',
                                           '--log-level', 'robot.flash_llm:=debug'),
                      name='robot/flash_llm', use_sim_time=True) as node:
        client = node.activate().client
        seen = len(client.statuses), len(client.diagnostics)
        client.until(lambda: len(client.statuses) > seen[0] + 2
                     and len(client.diagnostics) > seen[1] + 1, 30, 'health')
        assert client.status.stamp.sec == 0
        assert client.diagnostics[-1].header.stamp.sec == 0
        names = {status.name for status in client.diagnostics[-1].status}
        assert '/robot/flash_llm: engine' in names
        assert snapshot(client).age < 30

        client.send_goal(goal('Hello', 2)).result(30)
        client.until(lambda: ': LENGTH, ' in node.process.log(), 10, 'the log')
        assert client.transition('deactivate')
        assert 'Inactive: takes no requests' in node.process.log()


def test_diagnostics_go_on_during_a_long_prefill(active_node):
    from diagnostic_msgs.msg import DiagnosticStatus

    client = active_node.client
    run = client.send_goal(goal('Hello [prefill=2.5]', 1))
    start = len(client.diagnostics)
    run.result(30)
    during = client.diagnostics[start:]
    assert 2 <= len(during) <= 4        # 1 Hz
    reading = [values(array.status[0])['state'] for array in during]
    assert reading.count('reading a prompt') >= 2
    assert all(array.status[0].level == DiagnosticStatus.OK for array in during)


def test_diagnostics_and_state_go_on_while_the_store_is_opened(int8_store):
    from diagnostic_msgs.msg import DiagnosticStatus
    from lifecycle_msgs.srv import ChangeState

    with running_node(int8_store, environment={'TEST_OPEN_SECONDS': '2.5'}) as node:
        client = node.client
        request = ChangeState.Request()
        request.transition.label = 'configure'
        configured = client._change_state.call_async(request)
        client.until(lambda: client.state() == 'configuring', 10, 'configuring')
        start = len(client.diagnostics)
        assert not client.transition('configure')       # one is under way
        code = client.send_goal(goal('Hello')).result(10)[1].error.code
        assert code == ErrorCode.NOT_ACTIVE
        client.until(configured.done, 30, 'configured')
        assert configured.result().success
        assert len(client.diagnostics) - start >= 1
        levels = {array.status[0].level for array in client.diagnostics[start:]}
        assert DiagnosticStatus.ERROR not in levels


def test_diagnostics_tell_health_and_memory_plan(active_node):
    from diagnostic_msgs.msg import DiagnosticStatus

    client = active_node.client
    plan = client.memory_plan()
    totals = {name: plan.pop(name)[0] for name in ('planned', 'budget', 'model on flash')}
    assert sum(size for size, _ in plan.values()) == totals['planned'] <= totals['budget']
    assert totals['budget'] == 32_000_000
    assert plan['window'][0] == client.status.window_bytes
    assert 'slots' in plan['window'][1]
    assert totals['model on flash'] == client.status.model_bytes

    def level_becomes(level, word):
        client.until(lambda: parts(client)['engine'].level == level, 10, f'level {level}')
        assert word in parts(client)['engine'].message

    client.send_goal(goal('Hello [fault]')).result(30)
    level_becomes(DiagnosticStatus.ERROR, 'failed twice')
    client.send_goal(goal('')).result(30)
    client.until(lambda: 'EMPTY_PROMPT' in values(parts(client)['engine'])['last error'], 10, '')
    level_becomes(DiagnosticStatus.ERROR, 'failed twice')       # who asks wrongly heals nothing
    client.send_goal(goal('Hello', 2)).result(30)
    level_becomes(DiagnosticStatus.OK, 'idle')
    client.send_goal(goal('')).result(30)
    client.until(lambda: 'EMPTY_PROMPT' in values(parts(client)['engine'])['last error'], 10, '')
    assert parts(client)['engine'].level == DiagnosticStatus.OK     # and harms nothing
    assert int(values(parts(client)['engine'])['faults']) == 1
