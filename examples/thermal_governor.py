"""Slows the language model down while the robot is hot or its battery runs low.

    ros2 run flash_llm_ros flash_llm_node --ros-args -p store:=STORE -p autostart:=true
    python examples/thermal_governor.py --ros-args -p battery:=/battery_state

Sets `compute.duty_cycle` and `compute.max_threads` of the node, which hold from the next token on
and change no answer, only how long it takes. The battery is a topic (sensor_msgs/BatteryState);
temperatures are the kernel's thermal zones. The worse of the two decides. If this node ends, the
language model stays at what was set last.
"""

import math
from pathlib import Path
import signal

from rcl_interfaces.srv import SetParameters
import rclpy
from rclpy.node import Node
from rclpy.parameter import Parameter
from rclpy.qos import qos_profile_sensor_data
from rclpy.signals import SignalHandlerOptions
from sensor_msgs.msg import BatteryState

CHARGING = (BatteryState.POWER_SUPPLY_STATUS_CHARGING, BatteryState.POWER_SUPPLY_STATUS_FULL)
LEAST_STEP = 0.05   # of the duty cycle, below which nothing is said to the node


def share(value: float, none: float, full: float) -> float:
    """Return 0 where `value` is at `none` or beyond, 1 at `full`, in between what lies between."""
    return min(1.0, max(0.0, (value - none) / (full - none)))


def hottest(zones: Path) -> float:
    """Return the highest temperature of the kernel's zones in °C, NaN where there is none."""
    temperatures = []
    for file in sorted(zones.glob('thermal_zone*/temp')):
        try:
            temperatures.append(int(file.read_text()) / 1000)
        except (OSError, ValueError):       # a sensor that is asleep
            continue
    return max(temperatures, default=math.nan)


class ThermalGovernor(Node):
    """Looks at battery and temperature once a `period` and tells the language model."""

    def __init__(self) -> None:
        super().__init__('thermal_governor')
        number = {name: self.declare_parameter(name, value).value for name, value in (
            ('period', 2.0), ('cool', 60.0), ('hot', 80.0), ('battery_full', 0.5),
            ('battery_low', 0.15), ('least_duty_cycle', 0.1))}
        self._cool, self._hot = number['cool'], number['hot']
        self._full, self._low = number['battery_full'], number['battery_low']
        self._least = number['least_duty_cycle']
        self._threads = self.declare_parameter('threads', 4).value      # when all is well
        self._zones = Path(self.declare_parameter('zones', '/sys/class/thermal').value)
        server = self.declare_parameter('server', 'flash_llm').value
        battery = self.declare_parameter('battery', 'battery_state').value
        self._set = self.create_client(SetParameters, f'{server}/set_parameters')
        self._charge = 1.0
        self._told: tuple[float, int] | None = None
        self.create_subscription(BatteryState, battery, self._take, qos_profile_sensor_data)
        self.create_timer(number['period'], self._look)

    def _take(self, state: BatteryState) -> None:
        known = not math.isnan(state.percentage)
        charging = state.power_supply_status in CHARGING
        self._charge = state.percentage if known and not charging else 1.0

    def _look(self) -> None:
        temperature = hottest(self._zones)
        cold = 1.0 if math.isnan(temperature) else share(temperature, self._hot, self._cool)
        well = min(cold, share(self._charge, self._low, self._full))
        duty_cycle = self._least + (1.0 - self._least) * well
        threads = max(1, round(self._threads * well))
        if (self._told is not None and abs(duty_cycle - self._told[0]) < LEAST_STEP
                and threads == self._told[1]):
            return
        if not self._set.service_is_ready():
            return      # tried again with the next look
        self._told = duty_cycle, threads
        self.get_logger().info(
            f'{temperature:.0f} °C, battery {self._charge:.0%}: duty cycle {duty_cycle:.2f}, '
            f'{threads} threads')
        sent = self._set.call_async(SetParameters.Request(parameters=[
            Parameter('compute.duty_cycle', value=duty_cycle).to_parameter_msg(),
            Parameter('compute.max_threads', value=threads).to_parameter_msg()]))
        sent.add_done_callback(self._check)

    def _check(self, sent: rclpy.task.Future) -> None:
        for result in sent.result().results:
            if not result.successful:
                self._told = None
                self.get_logger().warning(f'The node refused: {result.reason}')


def main() -> None:
    # A flag, as what a handler interrupts may hold the locks that a shutdown needs.
    stop: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, frame: stop.append(number))
    rclpy.init(signal_handler_options=SignalHandlerOptions.NO)
    node = ThermalGovernor()
    while not stop:
        rclpy.spin_once(node, timeout_sec=0.2)
    node.destroy_node()
    rclpy.shutdown()


if __name__ == '__main__':
    main()
