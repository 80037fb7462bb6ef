"""Turns what somebody says into a motion of the robot.

    ros2 run flash_llm_ros flash_llm_node --ros-args -p store:=STORE -p autostart:=true \\
        -p requests.structured:=true
    python examples/spoken_command.py
    ros2 topic pub --once /heard std_msgs/msg/String '{data: Go ahead slowly for three seconds.}'

Text from a speech recogniser comes on `heard`. The language model may only answer with a command
of motion_command.schema.json, which is published on `cmd_vel` (geometry_msgs/Twist) for as long as
it says, and as it is on `motion_command` (std_msgs/String, JSON).

Any new text stops the robot at once: it moves again when the text is understood. A text that holds
a word of the parameter `stop_words` needs no model and starts no motion. No motion lasts longer
than `longest_motion` seconds, whatever was said and whoever answers. Whatever goes wrong (no node,
no answer before the deadline, an answer that cannot be completed), the robot stands.

The form of a command is certain, its sense is the model's: SmolLM2-135M (`make demo`) understands
the line above, but takes "Back up quickly" for slow; Qwen2.5-Coder-1.5B understands both.
"""

from collections.abc import Iterable
import json
from pathlib import Path
import re
import signal
import time
import unicodedata

from geometry_msgs.msg import Twist
import rclpy
from rclpy.clock import Clock, ClockType
from rclpy.duration import Duration
from rclpy.node import Node
from rclpy.signals import SignalHandlerOptions
from std_msgs.msg import String

from flash_llm_ros.client import FlashLlmClient, PendingAnswer
from flash_llm_ros.finish_reason import FinishReason

SCHEMA = json.loads(Path(__file__).with_name('motion_command.schema.json').read_text())
# The examples are what a small model needs.
SYSTEM_PROMPT = (
    'You translate what a person says into one command for a robot, as JSON with action, speed and '
    'seconds. "Drive ahead fast for five seconds." is '
    '{"action":"forward","speed":"fast","seconds":5}. "Stop." is '
    '{"action":"stop","speed":"slow","seconds":1}.')
SPEEDS = {'slow': 0.1, 'normal': 0.3, 'fast': 0.6}      # m/s, and half of it in rad/s
# Signs of (linear.x, angular.z); positive turns are to the left (REP 103).
DIRECTIONS = {'forward': (1, 0), 'backward': (-1, 0), 'turn_left': (0, 1), 'turn_right': (0, -1),
              'stop': (0, 0)}
# A word too many here costs a halt, a word too few an accident.
STOP_WORDS = (
    'stop', 'stops', 'stopping', 'halt', 'freeze', 'wait', 'whoa', "don't move", 'stand still',
    'stopp', 'anhalten', 'halte', 'stehen bleiben', 'warte', 'nicht weiter',
    'arrête', 'arrêtez', 'attends', 'attendez',
    'alto', 'para', 'pare', 'párate', 'detente', 'deténgase', 'espera',
    'ferma', 'fermo', 'fermati', 'aspetta', 'parar', 'espere', 'stoppen', 'wacht',
    'стой', 'стоп', 'dur', '停', '止', 'とまれ', 'ストップ', '정지', '멈춰', 'توقف', 'रुक')
RATE = 10.0     # 1/s, of cmd_vel while the robot moves


def plain(text: str) -> str:
    """Return a text without case, accents and forms that look alike, words one blank apart."""
    decomposed = unicodedata.normalize('NFKD', text.replace('’', "'"))
    bare = ''.join(sign for sign in decomposed if not unicodedata.combining(sign))
    return ' '.join(bare.casefold().split())


def stop_pattern(words: Iterable[str]) -> re.Pattern[str]:
    """Return what finds a stop word, in plain text.

    Whole words are meant. Scripts without capitals often put no blanks between words, or endings
    behind them: there any place counts.
    """
    patterns = [rf'\b{re.escape(word)}\b' if word.upper() != word else re.escape(word)
                for word in filter(None, map(plain, words))]
    return re.compile('|'.join(patterns) or r'(?!)')


class SpokenCommand(Node):
    """Moves while a command lasts; stands still otherwise."""

    def __init__(self) -> None:
        super().__init__('spoken_command')
        server = self.declare_parameter('server', 'flash_llm').value
        self._deadline = self.declare_parameter('deadline', 10.0).value     # s
        self._longest = self.declare_parameter('longest_motion', 5.0).value     # s
        self._stop_words = stop_pattern(self.declare_parameter('stop_words', STOP_WORDS).value)
        self._llm = FlashLlmClient(server, node=self)
        self._velocity = self.create_publisher(Twist, 'cmd_vel', 10)
        self._command = self.create_publisher(String, 'motion_command', 10)
        self._pending: PendingAnswer | None = None
        self._motion = Twist()
        self._moves_until: float | None = None      # s of time.monotonic()
        self.create_subscription(String, 'heard', self._hear, 10)
        # Of a steady clock: that of a simulation may stand still while a robot moves.
        self.create_timer(1 / RATE, self._move, clock=Clock(clock_type=ClockType.STEADY_TIME))

    def close(self) -> None:
        """Leave the robot standing."""
        self._stop()
        self._velocity.wait_for_all_acked(Duration(seconds=1))
        self._llm.close()

    def _hear(self, message: String) -> None:
        self._stop()
        if self._pending is not None:
            self._pending.cancel()
            self._pending = None
        if self._stop_words.search(plain(message.data)):
            self.get_logger().info('Stopped by a word.')
            return
        self._pending = self._llm.start(
            message.data, system_prompt=SYSTEM_PROMPT, json_schema=SCHEMA, max_tokens=60,
            deadline=self._deadline, on_done=self._answered)

    def _answered(self, answer: PendingAnswer) -> None:
        if answer is not self._pending:     # replaced meanwhile
            return
        self._pending = None
        try:
            result = answer.result()
        except Exception as error:          # whatever it is, the robot stands
            self.get_logger().error(f'No command: {error}')
            return
        if result.finish_reason is not FinishReason.CANCELLED:
            self._obey(json.loads(result.text))     # valid by the schema

    def _obey(self, command: dict[str, str | int]) -> None:
        self.get_logger().info(f'Command: {command}')
        self._command.publish(String(data=json.dumps(command)))
        speed, (ahead, left) = SPEEDS[command['speed']], DIRECTIONS[command['action']]
        self._motion = Twist()
        self._motion.linear.x, self._motion.angular.z = ahead * speed, left * speed / 2
        if ahead or left:
            self._moves_until = time.monotonic() + min(command['seconds'], self._longest)

    def _move(self) -> None:
        if self._moves_until is None:
            return
        if time.monotonic() < self._moves_until:
            self._velocity.publish(self._motion)
        else:
            self._stop()

    def _stop(self) -> None:
        self._moves_until = None
        self._velocity.publish(Twist())


def main() -> None:
    # A flag, not an exception, which could come in the middle of anything; and rclpy's own handlers
    # would take the topics away before the last word is said.
    stop: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, frame: stop.append(number))
    rclpy.init(signal_handler_options=SignalHandlerOptions.NO)
    node = SpokenCommand()
    while not stop:
        rclpy.spin_once(node, timeout_sec=0.1)
    node.close()
    node.destroy_node()
    rclpy.shutdown()


if __name__ == '__main__':
    main()
