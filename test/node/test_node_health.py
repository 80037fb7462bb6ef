"""Heat, memory and QoS in the /diagnostics and ~/status of a node in its own process."""

import math
import shutil

import pytest
from ros_fixtures import running_node
from ros_parameters import set_parameter
from test_health import put
from test_node_monitor import parts, values
from test_node_requests import goal

from flash_llm_ros.store.device_profile import DeviceProfile, Measurement
from flash_llm_ros.store.flash_device import FlashDevice

pytestmark = pytest.mark.ros


def expect_level(client, part, level, word):
    client.until(lambda: client.diagnostics and parts(client)[part].level == level
                 and word in parts(client)[part].message, 60, f'{word!r} in {part}')


def test_heat_is_told_and_its_limits_can_be_changed(int8_store, tmp_path):
    from diagnostic_msgs.msg import DiagnosticStatus

    zone = 'class__thermal__thermal_zone0'
    put(tmp_path, **{f'{zone}__temp': '61500', f'{zone}__type': 'cpu-thermal'})
    with running_node(int8_store, environment={'TEST_SYSFS': str(tmp_path)}) as node:
        client = node.client
        expect_level(client, 'heat', DiagnosticStatus.OK, '61.5')
        client.until(lambda: client.status.temperature == 61.5, 10, 'the temperature')
        assert set_parameter(client, 'health.temperature_warning', 60.0) == ''
        expect_level(client, 'heat', DiagnosticStatus.WARN, 'cpu-thermal')
        put(tmp_path, **{f'{zone}__temp': '97000'})
        expect_level(client, 'heat', DiagnosticStatus.ERROR, '97.0')
        assert values(parts(client)['heat'])['zone'] == 'cpu-thermal'


@pytest.mark.slow
@pytest.mark.timeout(400)       # with the conversion of the model, where no test has needed it yet
def test_a_flash_slower_than_its_profile_is_told(real_store, tmp_path):
    """The same store and device; only the profile promises a hundred times what it can."""
    from diagnostic_msgs.msg import DiagnosticStatus

    store = shutil.copytree(real_store, tmp_path / 'store')
    DeviceProfile(
        FlashDevice.of(store), 'threads', True, '2026-01-01T00:00:00+00:00', 10**9,
        tuple(Measurement(pattern, size, 1, 3e11 / size)
              for pattern in ('random', 'sequential') for size in (4096, 1 << 20)),
    ).save(store / 'profile.yaml')
    # Little memory, so that computing waits for the flash on a quick machine, too.
    with running_node(store, dram_budget='62MB', lookup_tokens=0) as node:
        client = node.activate().client
        run = client.send_goal(goal('Tell me a story.', 300))
        expect_level(client, 'flash', DiagnosticStatus.WARN, 'times as long as its profile')
        client.until(lambda: client.status.flash_bytes_per_second > 1e6, 10, 'the throughput')
        assert set_parameter(client, 'health.flash_slowdown_warning', 1e6) == ''
        expect_level(client, 'flash', DiagnosticStatus.OK, 'times the least time')
        run.cancel()
        run.result(30)


def test_every_part_is_there_and_well(active_node):
    from diagnostic_msgs.msg import DiagnosticStatus

    client = active_node.client
    client.until(lambda: client.diagnostics and 'resident set (B)' in values(
        parts(client)['memory']), 10, '/diagnostics of the active node')
    assert set(parts(client)) == {'engine', 'memory plan', 'memory', 'flash', 'heat',
                                  'communication'}
    for part in ('memory', 'flash', 'communication'):
        assert parts(client)[part].level == DiagnosticStatus.OK, parts(client)[part]
    memory = values(parts(client)['memory'])
    resident = active_node.process.memory('VmRSS')
    assert abs(int(memory['resident set (B)']) - resident) < 16e6
    assert 0 < int(memory['grown by (B)']) < 32e6 + 16e6
    status = client.status
    assert status.threads == 1
    assert math.isnan(status.temperature) or -40 < status.temperature < 200
    assert status.flash_bytes_per_second >= 0


def test_another_node_of_its_name_is_told_while_it_is_there(active_node):
    from diagnostic_msgs.msg import DiagnosticStatus

    from flash_llm_ros.client.own_node import OwnNode

    client = active_node.client
    other = OwnNode(client.name.removeprefix('/'), active_node.domain)
    expect_level(client, 'communication', DiagnosticStatus.WARN, f'are called {client.name}')
    assert client.send_goal(goal('Hello')).result(30)[1].text     # a ghost does not stop it
    other.stop()
    other.destroy()
    expect_level(client, 'communication', DiagnosticStatus.OK, 'no QoS mismatch')
    assert active_node.process.log().count(f'are called {client.name}') == 1


def test_qos_that_does_not_fit_is_told_while_it_lasts(active_node):
    from diagnostic_msgs.msg import DiagnosticStatus
    from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
    from std_msgs.msg import String

    from flash_llm_msgs.msg import TokenChunk

    client = active_node.client
    latched = client.node.create_subscription(
        TokenChunk, f'{client.name}/stream', lambda message: None,
        QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL))
    expect_level(client, 'communication', DiagnosticStatus.WARN,
                 f'/flash_llm_operator gets nothing of {client.name}/stream')
    client.node.destroy_subscription(latched)
    expect_level(client, 'communication', DiagnosticStatus.OK, 'no QoS mismatch')
    hasty = client.node.create_publisher(
        String, f'{client.name}/prompt',
        QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT))
    expect_level(client, 'communication', DiagnosticStatus.WARN,
                 f'/flash_llm_operator is not heard on {client.name}/prompt')
    client.node.destroy_publisher(hasty)
    expect_level(client, 'communication', DiagnosticStatus.OK, 'no QoS mismatch')
