"""A behaviour tree that may ask a language model, and never waits for it longer than it can.

    ros2 run flash_llm_ros flash_llm_node --ros-args -p store:=STORE -p requests.structured:=true \\
        -p autostart:=true
    python examples/behaviour_tree.py
    ros2 topic pub --once /situation std_msgs/msg/String '{data: The door ahead is closed.}'

The tree is

    Fallback
    ├── AskLanguageModel: what to do, one of CHOICES, before `deadline` seconds have passed
    └── Decide: the safe choice

ticked at 10 Hz. A leaf that asks returns RUNNING until the answer is there, SUCCESS with it,
FAILURE for any error and when the deadline has passed: then the tree falls back to the safe choice
at the same tick. `halt` takes the question back. A new situation halts the tree and starts it
again. The decision goes out on `decision` (std_msgs/String). No tick ever blocks.
"""

from collections.abc import Callable, Sequence
from enum import Enum, auto
import signal
import time

import rclpy
from rclpy.node import Node
from rclpy.signals import SignalHandlerOptions
from std_msgs.msg import String

from flash_llm_ros.client import FlashLlmClient, PendingAnswer
from flash_llm_ros.finish_reason import FinishReason

CHOICES = ('wait', 'go around', 'ask for help')
SAFE = 'wait'
SYSTEM_PROMPT = f'You are a robot. You choose one of: {", ".join(CHOICES)}.'
RATE = 10.0     # ticks a second


class Status(Enum):
    """What a tick returns."""

    RUNNING = auto()
    SUCCESS = auto()
    FAILURE = auto()


class AskLanguageModel:
    """A leaf: one question, one choice. As in py_trees and BehaviorTree.CPP it is ticked."""

    def __init__(self, llm: FlashLlmClient, question: Callable[[], str], choices: Sequence[str],
                 deadline: float, decide: Callable[[str], None],
                 log: Callable[[str], None]) -> None:
        self._llm, self._question, self._choices = llm, question, choices
        self._deadline, self._decide, self._log = deadline, decide, log
        self._pending: PendingAnswer | None = None
        self._until = 0.0

    def tick(self) -> Status:
        if self._pending is None:
            self._until = time.monotonic() + self._deadline
            # The node ends the request by the same deadline; ours holds where there is no node.
            self._pending = self._llm.start(
                self._question(), system_prompt=SYSTEM_PROMPT, choices=self._choices,
                deadline=self._deadline)
        if not self._pending.done:
            if time.monotonic() < self._until:
                return Status.RUNNING
            self._log(f'No answer within {self._deadline:g} s.')
            self.halt()
            return Status.FAILURE
        pending, self._pending = self._pending, None
        try:
            answer = pending.result()
        except Exception as error:      # a tree has to go on, whatever it is
            self._log(f'No answer: {error}')
            return Status.FAILURE
        if answer.finish_reason is not FinishReason.STOP:
            self._log(f'No whole answer: {answer.finish_reason.name}')
            return Status.FAILURE
        self._decide(answer.text)
        return Status.SUCCESS

    def halt(self) -> None:
        if self._pending is not None:
            self._pending.cancel()
            self._pending = None


class Decide:
    """A leaf that succeeds at once."""

    def __init__(self, choice: str, decide: Callable[[str], None]) -> None:
        self._choice, self._decide = choice, decide

    def tick(self) -> Status:
        self._decide(self._choice)
        return Status.SUCCESS

    def halt(self) -> None:
        """Nothing runs."""


class Fallback:
    """The first child that does not fail, with memory."""

    def __init__(self, *children: AskLanguageModel | Decide) -> None:
        self._children, self._at = children, 0

    def tick(self) -> Status:
        while self._at < len(self._children):
            status = self._children[self._at].tick()
            if status is Status.RUNNING:
                return status
            if status is Status.SUCCESS:
                self._at = 0
                return status
            self._at += 1
        self._at = 0
        return Status.FAILURE

    def halt(self) -> None:
        for child in self._children:
            child.halt()
        self._at = 0


class BehaviourTree(Node):
    """Ticks while there is a situation to decide on."""

    def __init__(self) -> None:
        super().__init__('behaviour_tree')
        server = self.declare_parameter('server', 'flash_llm').value
        deadline = self.declare_parameter('deadline', 3.0).value        # s
        self._llm = FlashLlmClient(server, node=self)
        self._situation = ''
        self._ticking = False
        self._decision = self.create_publisher(String, 'decision', 10)
        self._tree = Fallback(
            AskLanguageModel(self._llm, lambda: f'{self._situation} What do you do?', CHOICES,
                             deadline, self._decide, self.get_logger().warning),
            Decide(SAFE, self._decide))
        self.create_subscription(String, 'situation', self._begin, 10)
        self.create_timer(1 / RATE, self._tick)

    def close(self) -> None:
        """Take back the question under way."""
        self._tree.halt()
        self._llm.close()

    def _begin(self, message: String) -> None:
        self._tree.halt()
        self._situation, self._ticking = message.data, True

    def _tick(self) -> None:
        if self._ticking and self._tree.tick() is not Status.RUNNING:
            self._ticking = False

    def _decide(self, choice: str) -> None:
        self.get_logger().info(f'Decision: {choice}')
        self._decision.publish(String(data=choice))


def main() -> None:
    # A flag, not an exception, which could come in the middle of anything; and rclpy's own handlers
    # would take the topics away before the last word is said.
    stop: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, frame: stop.append(number))
    rclpy.init(signal_handler_options=SignalHandlerOptions.NO)
    node = BehaviourTree()
    while not stop:
        rclpy.spin_once(node, timeout_sec=0.1)
    node.close()
    node.destroy_node()
    rclpy.shutdown()


if __name__ == '__main__':
    main()
