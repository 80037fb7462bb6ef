"""Does what somebody asks for with the robot's actions, services and topics.

    ros2 run flash_llm_ros flash_llm_node --ros-args -p store:=STORE -p autostart:=true \\
        -p requests.structured:=true
    python examples/tool_node.py --ros-args -p tools:=examples/robot_tools.yaml
    ros2 topic pub --once /command std_msgs/msg/String '{data: Drive to the dock and say hello.}'

A text on `command` goes to the language model with the tools of the file. It answers, or asks for
a tool; that is done, its result told, and so on, until there is an answer, which is published on
`reply`, or `deadline` seconds have passed, or `most_calls` calls were made, behind which the model
may only answer. An action under way then is cancelled. One command is worked on at a time; what
comes meanwhile waits. Nothing but the tools of the file can happen, with arguments within the
bounds that stand there: see doc/security.md.
"""

from pathlib import Path
import queue
import signal
import threading

import rclpy
from rclpy.node import Node
from rclpy.signals import SignalHandlerOptions
from std_msgs.msg import String
import yaml

from flash_llm_ros.client import FlashLlmClient, RobotTool, Toolbox, run_tools

SYSTEM_PROMPT = ('You are a robot. Do what you are asked with your tools, one call after the '
                 'other, then tell in one short sentence what you have done.')


class ToolNode(Node):
    """Hands commands to a thread that waits for the model and the robot."""

    def __init__(self) -> None:
        super().__init__('tool_node')
        server = self.declare_parameter('server', 'flash_llm').value
        file = self.declare_parameter('tools', str(Path(__file__).with_name('robot_tools.yaml')))
        self._deadline = self.declare_parameter('deadline', 120.0).value    # s, of a command
        self._most_calls = self.declare_parameter('most_calls', 6).value
        self._llm = FlashLlmClient(server)
        self._tools = Toolbox(RobotTool(**tool)
                              for tool in yaml.safe_load(Path(file.value).read_text()))
        self._reply = self.create_publisher(String, 'reply', 10)
        self._commands: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self.create_subscription(
            String, 'command', lambda message: self._commands.put(message.data), 10)
        self._worker = threading.Thread(target=self._work)
        self._worker.start()

    def close(self) -> None:
        """Cancel what the model is asked and what the robot does."""
        self._commands.put(None)
        self._tools.close()
        self._llm.close()
        self._worker.join()

    def _work(self) -> None:
        while (command := self._commands.get()) is not None:
            try:
                run = run_tools(self._llm, self._tools, command, deadline=self._deadline,
                                most_calls=self._most_calls, system_prompt=SYSTEM_PROMPT,
                                max_tokens=200)
            except Exception as error:      # whatever it is, the next command is heard
                self.get_logger().error(f'{command!r} was not done: {error}')
                continue
            for call, result in run.done:
                self.get_logger().info(f'{call.name}({call.arguments}): {result}')
            self._reply.publish(String(data=run.answer.text))


def main() -> None:
    stop: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, frame: stop.append(number))
    rclpy.init(signal_handler_options=SignalHandlerOptions.NO)
    node = ToolNode()
    while not stop:
        rclpy.spin_once(node, timeout_sec=0.1)
    node.close()
    node.destroy_node()
    rclpy.shutdown()


if __name__ == '__main__':
    main()
