"""Clients that send large messages to every interface of a node at /flash_llm, as fast as they can.

Its argument is the load as JSON (`Load`); the last line that it prints tells what was sent.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
import json
import os
import sys
import threading
import time

from rcl_interfaces.srv import DescribeParameters, SetParameters
import rclpy
from rclpy.action import ActionClient
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.parameter import Parameter
from rclpy.qos import QoSProfile
from rclpy.task import Future
from std_msgs.msg import String, UInt8MultiArray

from flash_llm_msgs.action import GenerateText
from flash_llm_msgs.srv import GenerateText as GenerateTextService
from flash_llm_msgs.srv import Tokenize
from flash_llm_ros.client.qos import CALLS

NODE = '/flash_llm'
DISCOVERY = 60.0    # s
WRONG = 4           # every so many clients publishes prompts of another type


@dataclass(frozen=True)
class Load:
    """So many clients, each with so many calls of a kind under way at a time."""

    domain: int
    seconds: float
    clients: int = 8
    calls: int = 1
    size: int = 1_000_000   # bytes of a message


class Flooding:
    """One client, a participant of its own in DDS."""

    def __init__(self, number: int, load: Load) -> None:
        self._context = rclpy.Context()
        rclpy.init(context=self._context, domain_id=load.domain)
        self._node = Node(f'flood_{number}', context=self._context, enable_rosout=False,
                          start_parameter_services=False)
        self._executor = SingleThreadedExecutor(context=self._context)
        self._executor.add_node(self._node)
        self._load = load
        self.sent: Counter[str] = Counter()
        self._under_way: dict[str, list[Future]] = {}
        self._message = (String(data='x' * load.size) if number % WRONG else
                         UInt8MultiArray(data=bytes(load.size)))
        self._prompt = self._node.create_publisher(
            type(self._message), f'{NODE}/prompt', QoSProfile(depth=20))
        self._kinds = self._calls('x' * load.size)

    def _calls(self, text: str) -> dict[str, Callable[[], Future]]:
        action = ActionClient(
            self._node, GenerateText, f'{NODE}/generate', goal_service_qos_profile=CALLS,
            result_service_qos_profile=CALLS, cancel_service_qos_profile=CALLS)
        assert action.wait_for_server(DISCOVERY)
        requests = {
            'generate_text': (GenerateTextService, GenerateTextService.Request(prompt=text)),
            'tokenize': (Tokenize, Tokenize.Request(text=text)),
            'describe_parameters': (DescribeParameters, DescribeParameters.Request(names=[text])),
            'set_parameters': (SetParameters, SetParameters.Request(parameters=[
                Parameter('requests.system_prompt', value=text).to_parameter_msg()]))}
        kinds = {'generate': lambda: action.send_goal_async(GenerateText.Goal(prompt=text))}
        for name, (kind, request) in requests.items():
            client = self._node.create_client(
                kind, f'{NODE}/{name}',
                **({'qos_profile': CALLS} if kind is GenerateTextService else {}))
            assert client.wait_for_service(DISCOVERY)
            kinds[name] = lambda client=client, request=request: client.call_async(request)
        return kinds

    def run(self) -> None:
        """Send until the time is over."""
        end = time.monotonic() + self._load.seconds
        while time.monotonic() < end:
            self._prompt.publish(self._message)
            self.sent['prompt'] += 1
            for name, call in self._kinds.items():
                waiting = self._under_way[name] = [
                    each for each in self._under_way.get(name, ()) if not each.done()]
                if len(waiting) < self._load.calls:
                    waiting.append(call())
                    self.sent[name] += 1
            for _ in range(2 * len(self._kinds)):
                self._executor.spin_once(timeout_sec=0)

    def leave(self) -> None:
        """Out of the graph at once, whatever is under way."""
        rclpy.shutdown(context=self._context)
        self._node.destroy_node()


def main() -> None:
    load = Load(**json.loads(sys.argv[1]))
    floods = [Flooding(number, load) for number in range(load.clients)]
    threads = [threading.Thread(target=flood.run) for flood in floods]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for flood in floods:
        flood.leave()
    print(json.dumps(sum((flood.sent for flood in floods), Counter())), flush=True)
    os._exit(0)     # rclpy would wait for the answers that nobody has taken


if __name__ == '__main__':
    main()
