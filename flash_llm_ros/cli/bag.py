"""Prompts and answers in rosbag2 bags, through the optional library rosbags."""

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
import sys
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rosbags.typesys.store import Typestore

STRING = 'std_msgs/msg/String'
PACKAGE = 'flash_llm_msgs'
CHUNK = f'{PACKAGE}/msg/TokenChunk'
GOAL_ID = 32        # characters of the id of an action's goal; prompts have numbers


class BagError(Exception):
    """A bag cannot be used; the text says why."""


def require_rosbags() -> None:
    """Raise BagError with what to do where the library is missing."""
    try:
        import rosbags  # noqa: F401
    except ImportError:
        raise BagError("bags need the Python library 'rosbags': pip install rosbags") from None


def interface_folder() -> Path:
    """Return the folder of the installed message definitions; raises BagError."""
    from ament_index_python.packages import PackageNotFoundError, get_package_share_directory

    try:
        share = Path(get_package_share_directory(PACKAGE))
    except (PackageNotFoundError, LookupError, OSError):
        # From wheels, without a sourced ROS set-up.
        share = Path(sys.prefix, 'share', PACKAGE)
    if not (share / 'msg').is_dir():
        raise BagError(f'the message definitions of {PACKAGE} are not installed: no {share}/msg')
    return share / 'msg'


def message_types() -> 'Typestore':
    """Return the types of ROS 2 Jazzy and of flash_llm_msgs; raises BagError."""
    require_rosbags()
    from rosbags.typesys import Stores, get_types_from_msg, get_typestore

    types = get_typestore(Stores.ROS2_JAZZY)
    found = {}
    for file in sorted(interface_folder().glob('*.msg')):
        found |= get_types_from_msg(file.read_text(), f'{PACKAGE}/msg/{file.stem}')
    types.register(found)
    return types


@dataclass(frozen=True)
class RecordedAnswer:
    """What became of a prompt: constants of TokenChunk and EngineError, and the finished text."""

    text: str
    finish_reason: int
    code: int


def read_strings(bag: Path, topic: str) -> list[str]:
    """Return the texts of a std_msgs/String topic in their order; raises BagError."""
    return [message.data for _, message in _messages(bag, {topic: STRING})]


def read_answers(bag: Path, node: str) -> list[RecordedAnswer]:
    """Return what became of the prompts of a node, such as '/flash_llm'; raises BagError.

    Without its ~/stream the finished answers alone.
    """
    response, stream = f'{node}/response', f'{node}/stream'
    messages = _messages(bag, {response: STRING, stream: CHUNK}, optional=stream)
    texts = deque(message.data for topic, message in messages if topic == response)
    ends = [message for topic, message in messages if topic == stream
            and message.finish_reason != message.RUNNING and len(message.request_id) != GOAL_ID]
    if not ends:
        return [RecordedAnswer(text, 1, 0) for text in texts]
    answered = sum(end.finish_reason in (end.STOP, end.LENGTH) for end in ends)
    if answered != len(texts):
        raise BagError(f'{bag} holds {len(texts)} texts of {response}, but {answered} ends of '
                       f'answers on {stream}')
    return [RecordedAnswer(texts.popleft(), end.finish_reason, 0)
            if end.finish_reason in (end.STOP, end.LENGTH) else
            RecordedAnswer('', end.finish_reason, end.error.code) for end in ends]


def _messages(bag: Path, kinds: dict[str, str], optional: str = '') -> list[tuple[str, object]]:
    """Return topic and message of everything on these topics -> types, in their order."""
    require_rosbags()
    from rosbags.highlevel import AnyReader, AnyReaderError

    try:
        with AnyReader([bag], default_typestore=message_types()) as reader:
            for topic in kinds.keys() - reader.topics.keys() - {optional}:
                topics = ', '.join(sorted(reader.topics)) or 'none'
                raise BagError(f'{bag} has no topic {topic}; its topics: {topics}')
            connections = [entry for entry in reader.connections if entry.topic in kinds]
            for connection in connections:
                if connection.msgtype != kinds[connection.topic]:
                    raise BagError(f'{connection.topic} in {bag} holds {connection.msgtype}, not '
                                   f'{kinds[connection.topic]}')
            return [(connection.topic, reader.deserialize(data, connection.msgtype))
                    for connection, _, data in reader.messages(connections)]
    except (AnyReaderError, FileNotFoundError) as error:
        what = str(error)
        if not (bag if bag.suffix == '.mcap' else bag / 'metadata.yaml').exists():
            what = 'it must be the folder of a bag, with a metadata.yaml, or an .mcap file'
        raise BagError(f'{bag} cannot be read: {what}') from None


class BagWriter:
    """Adds messages of one bag; made by ``write_bag``."""

    def __init__(self, writer: object, types: 'Typestore') -> None:
        self._writer = writer
        self._types = types
        self._connections: dict[str, object] = {}

    def add(self, topic: str, message_type: str, data: bytes) -> None:
        """Add a serialised message, such as ('/chat', 'std_msgs/msg/String', b'...'), as of now."""
        if topic not in self._connections:
            self._connections[topic] = self._writer.add_connection(
                topic, message_type, typestore=self._types)
        self._writer.write(self._connections[topic], time.time_ns(), data)


@contextmanager
def write_bag(path: Path) -> Iterator[BagWriter]:
    """Open a new sqlite3 bag that `ros2 bag play` takes, too; raises BagError."""
    types = message_types()
    from rosbags.rosbag2 import Writer, WriterError

    try:
        with Writer(path, version=9) as writer:
            yield BagWriter(writer, types)
    except WriterError as error:
        raise BagError(f'{path} cannot be written: {error}') from None
