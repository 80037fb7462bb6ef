"""The nodes of this package in the ROS graph, as their ~/status tells of them."""

from collections.abc import Callable, Iterable
import time

from rclpy.node import Node

from flash_llm_msgs.msg import EngineStatus
from flash_llm_ros.client.nodes_there import nodes_there
from flash_llm_ros.client.qos import STATUS

# s without a ~/status, which comes twice a second; DDS misses a process that was killed after 20 s.
SILENT_AFTER = 3.0
STATES = {getattr(EngineStatus, name): name.lower() for name in (
    'UNCONFIGURED', 'INACTIVE', 'IDLE', 'PREFILL', 'GENERATING')}


class SeenNode:
    """One node: its latest status, and how fast it was when it last did something."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.status: EngineStatus | None = None
        self.status_at = 0.0        # s of time.monotonic()
        self.tokens_per_second = 0.0    # 0: not known yet
        self.time_to_first_token = 0.0  # s

    def take(self, status: EngineStatus) -> None:
        """Take a status. One from the start of a request knows no speed yet."""
        self.status, self.status_at = status, time.monotonic()
        self.tokens_per_second = status.tokens_per_second or self.tokens_per_second
        self.time_to_first_token = status.time_to_first_token or self.time_to_first_token

    @property
    def silence(self) -> float:
        """Seconds since the latest status; infinite before the first."""
        return time.monotonic() - self.status_at if self.status else float('inf')

    @property
    def state(self) -> str:
        """The name of its state; 'silent' where it should have said something."""
        return STATES[self.status.state] if self.silence < SILENT_AFTER else 'silent'

    @property
    def is_active(self) -> bool:
        """Whether it answers requests."""
        return self.state in ('idle', 'prefill', 'generating')

    @property
    def load(self) -> int:
        """How many requests run and wait there, of anybody."""
        return self.status.queue_length + (self.state in ('prefill', 'generating'))


class SeenNodes:
    """Listens to every node of this package, or to those that are named."""

    def __init__(
        self, node: Node, names: Iterable[str] = (),
        on_status: Callable[[SeenNode], None] = lambda seen: None,
    ) -> None:
        """``names`` are full ones. ``on_status`` is called in the thread that spins ``node``."""
        self._node = node
        self._names = set(names)
        self._on_status = on_status
        self.nodes: dict[str, SeenNode] = {}

    def look(self) -> None:
        """Listen to those that have come. One that has left is kept: it may come again."""
        for name in (self._names or set(nodes_there(self._node))) - self.nodes.keys():
            self._listen_to(name)

    def _listen_to(self, name: str) -> None:
        seen = self.nodes[name] = SeenNode(name)

        def take(status: EngineStatus) -> None:
            seen.take(status)
            self._on_status(seen)

        self._node.create_subscription(EngineStatus, f'{name}/status', take, STATUS)
