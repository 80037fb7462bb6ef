"""Keeps a short summary of a mission's log, live or from a bag.

    ros2 run flash_llm_ros flash_llm_node --ros-args -p store:=STORE -p autostart:=true
    python examples/mission_log_summary.py
    ros2 bag play mission_bag                        # or the robot itself

Lines come on `mission_log` (std_msgs/String). Whenever `lines` new ones have come, and at the end
of the mission (`mission_end`, std_msgs/Empty), they are summed up together with the summary so
far, so that a mission of any length fits into the context; the summary goes out on
`mission_summary` (std_msgs/String, transient local: who comes late sees the latest). It asks with
a low priority: whoever needs the language model for something urgent goes first, and this goes on
afterwards. A failure loses no line: they are summed up with the next ones.
"""

from collections import deque
import signal

import rclpy
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile
from rclpy.signals import SignalHandlerOptions
from std_msgs.msg import Empty, String

from flash_llm_ros.client import AnswerError, FlashLlmClient, PendingAnswer
from flash_llm_ros.finish_reason import FinishReason
from flash_llm_ros.store.errors import ErrorCode

SYSTEM_PROMPT = 'You keep the log of a robot. You answer with a summary of a few short sentences.'
LOW_PRIORITY = 20       # of 0 to 255; requests have 100 if they do not say otherwise
SHORT_LINE = 40         # characters; if such a line does not fit, the context is too small
KEPT_LINES = 10_000     # while no summary can be made; older ones are dropped, and counted


class MissionLogSummary(Node):
    """One request at a time; lines that come meanwhile wait."""

    def __init__(self) -> None:
        super().__init__('mission_log_summary')
        server = self.declare_parameter('server', 'flash_llm').value
        self._lines_at_once = self.declare_parameter('lines', 20).value
        self._max_tokens = self.declare_parameter('max_tokens', 80).value
        self._llm = FlashLlmClient(server, node=self)
        latest = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
        self._topic = self.create_publisher(String, 'mission_summary', latest)
        self._lines: deque[str] = deque(maxlen=KEPT_LINES)
        self._dropped = 0
        self._summary = ''
        self._asked = 0             # lines of the request under way; 0: none is
        self._least = self._lines_at_once
        self.create_subscription(String, 'mission_log', self._take, 1000)
        self.create_subscription(Empty, 'mission_end', self._end, 10)

    def close(self) -> None:
        """Take back the request under way."""
        self._llm.close()

    def _take(self, message: String) -> None:
        self._dropped += len(self._lines) == KEPT_LINES
        self._lines.append(message.data)
        self._ask_if_enough()

    def _end(self, message: Empty) -> None:
        self._least = 1
        self._ask_if_enough()

    def _ask_if_enough(self) -> None:
        if not self._asked and len(self._lines) >= self._least:
            self._ask(min(len(self._lines), self._lines_at_once))

    def _ask(self, count: int) -> None:
        self._asked = count
        lines = [self._lines[index] for index in range(count)]
        parts = [f'Summary so far:\n{self._summary}'] if self._summary else []
        parts += ['New lines of the log:', *lines, 'Sum all of it up.']
        self._llm.start('\n'.join(parts), system_prompt=SYSTEM_PROMPT, priority=LOW_PRIORITY,
                        max_tokens=self._max_tokens, on_done=self._answered)

    def _answered(self, answer: PendingAnswer) -> None:
        asked, self._asked = self._asked, 0
        try:
            result = answer.result()
        except AnswerError as error:
            if error.code == ErrorCode.PROMPT_TOO_LONG and self._shorten(asked):
                self._ask(max(1, asked // 2))
            else:
                self._fail(error)
            return
        except Exception as error:
            self._fail(error)
            return
        if result.finish_reason in (FinishReason.STOP, FinishReason.LENGTH):
            self._publish(result.text, asked)
        self._ask_if_enough()

    def _shorten(self, asked: int) -> bool:
        """Whether less can be asked: fewer lines, or half of one that is too long alone."""
        if asked == 1:
            line = self._lines[0]
            if len(line) <= SHORT_LINE:
                return False
            self._lines[0] = line[:len(line) // 2]
        return True

    def _publish(self, summary: str, asked: int) -> None:
        for _ in range(asked):
            self._lines.popleft()
        self._summary = summary
        self.get_logger().info(f'{asked} lines summed up, {self._dropped} dropped so far.')
        self._topic.publish(String(data=summary))

    def _fail(self, error: Exception) -> None:
        self.get_logger().error(f'No summary; its lines are kept: {error}')


def main() -> None:
    # A flag, not an exception, which could come in the middle of anything; and rclpy's own handlers
    # would take the topics away before the last word is said.
    stop: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, frame: stop.append(number))
    rclpy.init(signal_handler_options=SignalHandlerOptions.NO)
    node = MissionLogSummary()
    while not stop:
        rclpy.spin_once(node, timeout_sec=0.1)
    node.close()
    node.destroy_node()
    rclpy.shutdown()


if __name__ == '__main__':
    main()
