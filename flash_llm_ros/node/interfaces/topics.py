"""The topics ~/prompt -> ~/response, for bags, rqt and quick tests, ~/stream and ~/sentences."""

import struct

from rclpy.callback_groups import CallbackGroup, MutuallyExclusiveCallbackGroup
from rclpy.node import Node
from rclpy.publisher import Publisher
from rclpy.qos import QoSProfile
from std_msgs.msg import String

from flash_llm_msgs.msg import TokenChunk
from flash_llm_ros.client.qos import SENTENCES, STREAM
from flash_llm_ros.engine import FinishReason, GenerationRequest
from flash_llm_ros.node.interfaces.conversions import chunk_message
from flash_llm_ros.node.interfaces.intake import Intake, Understood
from flash_llm_ros.node.interfaces.sentence_splitter import SentenceSplitter
from flash_llm_ros.node.parameters import Parameters
from flash_llm_ros.node.work.request import Chunk, Outcome, Outlet
from flash_llm_ros.store.errors import ErrorCode, FlashLlmError

QOS = QoSProfile(depth=20)
ANSWERED = (FinishReason.STOP, FinishReason.LENGTH)
HEADER = 4  # bytes of the encapsulation header; the lowest bit of its second byte: little endian


class StreamTopic(Outlet):
    """~/stream: the chunks of every request of every interface."""

    def __init__(self, node: Node, callback_group: CallbackGroup) -> None:
        self._publisher = node.create_publisher(
            TokenChunk, '~/stream', STREAM, callback_group=callback_group)

    def chunk(self, chunk: Chunk) -> None:
        """Publish the chunk."""
        self._publisher.publish(chunk_message(chunk))


class SentencesTopic:
    """~/sentences: what is to be spoken, sentence by sentence."""

    def __init__(self, node: Node, callback_group: CallbackGroup) -> None:
        self._publisher = node.create_publisher(
            String, '~/sentences', SENTENCES, callback_group=callback_group)

    def outlet(self) -> Outlet:
        """Return the outlet of one request."""
        return _Spoken(self._publisher)


class _Spoken(Outlet):
    """The sentences of one request; without a listener when it starts, nothing is looked at."""

    def __init__(self, publisher: Publisher) -> None:
        self._publisher = publisher
        self._splitter: SentenceSplitter | None = None

    def started(self) -> None:
        """Look whether anybody listens."""
        if self._publisher.get_subscription_count():
            self._splitter = SentenceSplitter()

    def chunk(self, chunk: Chunk) -> None:
        """Publish what has ended; the rest at the end of an answer, of nothing that was ended."""
        reason = chunk.finish_reason
        if self._splitter is None or reason not in (FinishReason.RUNNING, *ANSWERED):
            return
        sentences = self._splitter.add(chunk.text)
        if reason in ANSWERED:
            sentences += self._splitter.rest()
        for sentence in sentences:
            self._publisher.publish(String(data=sentence))


class PromptTopic:
    """A finished answer is published as a whole; anything else shows on ~/stream and in the log."""

    def __init__(self, node: Node, parameters: Parameters, intake: Intake) -> None:
        self._parameters = parameters
        self._intake = intake
        # One callback at a time keeps the prompts in their order.
        group = MutuallyExclusiveCallbackGroup()
        self._response = node.create_publisher(String, '~/response', QOS, callback_group=group)
        node.create_subscription(
            String, '~/prompt', self._take, QOS, callback_group=group, raw=True)

    def _take(self, message: bytes) -> None:
        self._intake.submit(
            self._intake.next_id(), _Prompt(self._response), lambda: self._understand(message))

    def _understand(self, message: bytes) -> Understood:
        parameters = self._parameters
        generation = GenerationRequest(
            prompt=read_cdr_string(message),
            system_prompt=parameters['requests.system_prompt'],
            keep_system_prompt=bool(parameters['requests.system_prompt']),
            raw=False,
            sampling=parameters.sampling(),
            max_tokens=parameters['requests.max_tokens'],
            stop=())
        return Understood(generation, parameters['requests.default_deadline'], speak=True)


class _Prompt(Outlet):
    """The outlet of one prompt."""

    def __init__(self, response: Publisher) -> None:
        self._response = response

    def done(self, outcome: Outcome) -> None:
        """Publish an answer that came to its end."""
        if outcome.finish_reason in ANSWERED:
            self._response.publish(String(data=outcome.text))


def read_cdr_string(message: bytes) -> str:
    """Return the text of a serialised std_msgs/String; raises FlashLlmError(INVALID_TEXT).

    rclpy replaces bytes that are not UTF-8 and cuts a string at its first NUL without telling; a
    prompt so changed must be refused instead of answered.
    """
    if len(message) < HEADER + 4:
        raise FlashLlmError(ErrorCode.INVALID_TEXT, 'The message is too short for a string.')
    order = '<' if message[1] & 1 else '>'
    (length,) = struct.unpack_from(f'{order}I', message, HEADER)
    data = message[HEADER + 4:HEADER + 4 + length]
    if len(data) < length:
        raise FlashLlmError(
            ErrorCode.INVALID_TEXT, f'The string claims {length} bytes, {len(data)} came.')
    data = data[:-1] if data.endswith(b'\0') else data
    if (nul := data.find(b'\0')) >= 0:
        raise FlashLlmError(
            ErrorCode.INVALID_TEXT, f'The prompt holds a NUL at byte {nul}; leave it out.')
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise FlashLlmError(
            ErrorCode.INVALID_TEXT,
            f'The prompt is not valid UTF-8 at byte {error.start}: {error.reason}.') from None
