"""Other nodes of this one's full name in the ROS graph: each of them gets every request."""

from collections.abc import Callable
import time

from rclpy.node import Node

from flash_llm_ros.node.health import Level

KILLED = 30.0   # s; DDS shows a process that was killed for 20


class Namesakes:
    """Looks at the graph with each `findings`.

    A node that was killed and started again sees its former self for a while: to refuse to be
    active then would leave the robot without any.
    """

    def __init__(self, node: Node, clock: Callable[[], float] = time.monotonic) -> None:
        self._node, self._clock = node, clock
        self._since: float | None = None
        self._told = Level.OK

    def findings(self) -> list[tuple[Level, str]]:
        """What is to be told of them now; the log is told once, and again when it is no ghost."""
        name = self._node.get_fully_qualified_name()
        others = [f'{namespace.rstrip("/")}/{each}' for each, namespace
                  in self._node.get_node_names_and_namespaces()].count(name) - 1
        if others < 1:
            self._since, self._told = None, Level.OK
            return []
        now = self._clock()
        self._since = now if self._since is None else self._since
        level = Level.WARN if now - self._since < KILLED else Level.ERROR
        text = (f'{others + 1} nodes of the ROS graph are called {name}: each gets every request '
                'and publishes its own answer. Give each a name or a namespace of its own'
                + (', unless one was killed just now.' if level is Level.WARN else '.'))
        if level > self._told:
            self._told = level
            log = self._node.get_logger()
            (log.warning if level is Level.WARN else log.error)(text)
        return [(level, text)]
