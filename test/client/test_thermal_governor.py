"""The example that slows the node down, in a process of its own, with a battery and a sensor."""

import math

import pytest
from ros_fixtures import example, running_node

pytestmark = pytest.mark.ros


@pytest.fixture
def zones(tmp_path):
    """Two thermal zones as the kernel shows them; the second cannot be read."""
    for number, content in enumerate(('40000\n', 'asleep')):
        (tmp_path / f'thermal_zone{number}').mkdir()
        (tmp_path / f'thermal_zone{number}/temp').write_text(content)
    return tmp_path


def test_heat_and_an_empty_battery_slow_the_node_down(int8_store, zones):
    from sensor_msgs.msg import BatteryState
    from test_node_requests import goal

    with (running_node(int8_store, threads=4) as node,
          example('thermal_governor.py', node.activate(), period=0.1, zones=zones)):
        client = node.client
        battery = client.node.create_publisher(BatteryState, '/battery_state', 10)
        client.until(lambda: battery.get_subscription_count() > 0, 30, 'the governor')

        def until_slowed(duty_cycle, threads, **state):
            def slowed():
                if state:
                    battery.publish(BatteryState(**state))
                status = client.status
                return abs(status.duty_cycle - duty_cycle) < 0.01 and status.threads == threads

            client.until(slowed, 30, f'{duty_cycle}, {threads}, not {client.status.duty_cycle}, '
                         f'{client.status.threads}')

        text = client.send_goal(goal('Hello', 8)).result(30)[1].text
        until_slowed(1.0, 4)
        (zones / 'thermal_zone0/temp').write_text('70000\n')        # half way from cool to hot
        until_slowed(0.55, 4)       # threads change with the next token
        assert client.send_goal(goal('Hello', 8)).result(30)[1].text == text
        until_slowed(0.55, 2)
        discharging = BatteryState.POWER_SUPPLY_STATUS_DISCHARGING
        until_slowed(0.1, 2, percentage=0.1, power_supply_status=discharging)
        (zones / 'thermal_zone0/temp').write_text('30000\n')        # the battery still decides
        until_slowed(0.1, 2)
        until_slowed(1.0, 2, percentage=0.1,
                     power_supply_status=BatteryState.POWER_SUPPLY_STATUS_CHARGING)
        until_slowed(0.1, 2, percentage=0.1, power_supply_status=discharging)
        until_slowed(1.0, 2, percentage=math.nan, power_supply_status=discharging)
        assert client.send_goal(goal('Hello', 8)).result(30)[1].text == text
