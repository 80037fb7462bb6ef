"""The topics ~/prompt -> ~/response: plain strings, for bags, rqt and quick tests."""

from rclpy.callback_groups import MutuallyExclusiveCallbackGroup
from rclpy.node import Node
from rclpy.publisher import Publisher
from rclpy.qos import QoSProfile
from std_msgs.msg import String

from flash_llm_ros.engine import FinishReason, GenerationRequest
from flash_llm_ros.node.interfaces.cdr_string import read_cdr_string
from flash_llm_ros.node.interfaces.intake import Intake, Understood
from flash_llm_ros.node.interfaces.request_numbers import RequestNumbers
from flash_llm_ros.node.parameters import Parameters
from flash_llm_ros.node.work.request import Chunk, Outcome

QOS = QoSProfile(depth=20)


class PromptTopic:
    """A finished answer is published as a whole; anything else shows on ~/stream and in the log."""

    def __init__(
        self, node: Node, parameters: Parameters, intake: Intake, numbers: RequestNumbers,
    ) -> None:
        self._parameters = parameters
        self._intake = intake
        self._numbers = numbers
        # One callback at a time keeps the prompts in their order.
        group = MutuallyExclusiveCallbackGroup()
        self._response = node.create_publisher(String, '~/response', QOS, callback_group=group)
        node.create_subscription(
            String, '~/prompt', self._take, QOS, callback_group=group, raw=True)

    def _take(self, message: bytes) -> None:
        self._intake.submit(
            self._numbers.next(), _Prompt(self._response), lambda: self._understand(message))

    def _understand(self, message: bytes) -> Understood:
        parameters = self._parameters
        generation = GenerationRequest(
            prompt=read_cdr_string(message),
            system_prompt=parameters['system_prompt'],
            keep_system_prompt=bool(parameters['system_prompt']),
            raw=False,
            sampling=parameters.sampling(),
            max_tokens=parameters['max_tokens'],
            stop=())
        return Understood(generation, parameters['default_deadline'])


class _Prompt:
    """The outlet of one prompt."""

    def __init__(self, response: Publisher) -> None:
        self._response = response

    def started(self) -> None:
        """Tell nobody."""

    def chunk(self, chunk: Chunk) -> None:
        """Tell nobody: ~/stream has it."""

    def done(self, outcome: Outcome) -> None:
        """Publish an answer that came to its end."""
        if outcome.finish_reason in (FinishReason.STOP, FinishReason.LENGTH):
            self._response.publish(String(data=outcome.text))
