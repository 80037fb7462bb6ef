"""A bare rclpy node with the endpoints and parameters of ours and nothing behind them.

To compare with: heap, executor and DDS profile are as in ours. Its log says 'ready' when it is.
"""

import contextlib

import rclpy
from rclpy.action import ActionServer, GoalResponse
from rclpy.action.server import ServerGoalHandle
from rclpy.callback_groups import MutuallyExclusiveCallbackGroup, ReentrantCallbackGroup
from rclpy.executors import ExternalShutdownException, MultiThreadedExecutor
from rclpy.lifecycle import LifecycleNode
from std_msgs.msg import String

from flash_llm_msgs.action import GenerateText
from flash_llm_msgs.msg import EngineStatus, TokenChunk
from flash_llm_msgs.srv import GenerateText as GenerateTextService
from flash_llm_msgs.srv import ResetSession, Tokenize
from flash_llm_ros.client.qos import CALLS, STATUS, STREAM
from flash_llm_ros.engine.memory.process_memory import return_large_blocks, share_one_heap
from flash_llm_ros.node.dds_profile import use_dds_profile
from flash_llm_ros.node.interfaces.action import RESULT_TIMEOUT
from flash_llm_ros.node.interfaces.topics import QOS
from flash_llm_ros.node.main import EXECUTOR_THREADS
from flash_llm_ros.node.parameters import TABLE


class BareNode(LifecycleNode):
    """Answers everything at once, with what is empty."""

    def __init__(self) -> None:
        super().__init__('flash_llm')
        for entry in TABLE:
            self.declare_parameter(entry.name, entry.default)
        self._server = ActionServer(
            self, GenerateText, '~/generate', self._abort,
            goal_callback=lambda goal: GoalResponse.ACCEPT,
            callback_group=MutuallyExclusiveCallbackGroup(), goal_service_qos_profile=CALLS,
            result_service_qos_profile=CALLS, cancel_service_qos_profile=CALLS,
            feedback_pub_qos_profile=STREAM, result_timeout=RESULT_TIMEOUT)
        self.create_service(
            GenerateTextService, '~/generate_text', lambda ask, answer: answer,
            qos_profile=CALLS, callback_group=ReentrantCallbackGroup())
        for kind, name in ((Tokenize, '~/tokenize'), (ResetSession, '~/reset_session')):
            self.create_service(kind, name, lambda ask, answer: answer,
                                callback_group=MutuallyExclusiveCallbackGroup())
        self.create_subscription(String, '~/prompt', lambda message: None, QOS, raw=True,
                                 callback_group=MutuallyExclusiveCallbackGroup())
        self.create_publisher(String, '~/response', QOS)
        self.create_publisher(TokenChunk, '~/stream', STREAM)
        self.create_publisher(EngineStatus, '~/status', STATUS)

    @staticmethod
    def _abort(handle: ServerGoalHandle) -> GenerateText.Result:
        handle.abort()
        return GenerateText.Result()


def main() -> None:
    share_one_heap()
    return_large_blocks()
    use_dds_profile()
    rclpy.init()
    executor = MultiThreadedExecutor(EXECUTOR_THREADS)
    executor.add_node(BareNode())
    print('ready', flush=True)
    with contextlib.suppress(KeyboardInterrupt, ExternalShutdownException):
        executor.spin()


if __name__ == '__main__':
    main()
