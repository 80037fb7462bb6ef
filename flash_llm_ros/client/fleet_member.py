"""One node of a fleet: its client, what it has to do, and how long that will take."""

from collections.abc import Iterable, Mapping
import time

from rclpy.node import Node

from flash_llm_msgs.action import GenerateText
from flash_llm_ros.client.flash_llm_client import FlashLlmClient
from flash_llm_ros.client.seen_nodes import SeenNode

AT_ONCE = 2             # requests sent to a node: one runs, the next is there when that ends
REFUSAL_HOLDS = 0.5     # s after which a node that has refused something is asked again
USUAL_TOKENS = 128      # of an answer whose request says nothing


class FleetMember:
    """A node with the requests that it has from the fleet."""

    def __init__(self, seen: SeenNode, node: Node, find_timeout: float) -> None:
        self.seen = seen
        self.name = seen.name
        self.client = FlashLlmClient(seen.name, node=node, find_timeout=find_timeout)
        self.requests: dict[object, int] = {}   # -> priority
        self.refused_at = 0.0
        self._of_others = 0

    def look(self) -> None:
        """Take a new status: what is there beyond our own requests is others'."""
        self._of_others = max(self.seen.load - len(self.requests), 0)

    @property
    def is_able(self) -> bool:
        """Whether it answers requests."""
        return self.seen.is_active and self.client.is_ready()

    @property
    def has_refused(self) -> bool:
        """Whether it has just refused a request, as it is full."""
        return time.monotonic() < self.refused_at + REFUSAL_HOLDS

    @property
    def load(self) -> int:
        """How many requests it has, of anybody."""
        return len(self.requests) + self._of_others

    def has_room(self, priority: int) -> bool:
        """Whether a request would be sent there now; one of a higher priority pushes in."""
        ours = sum(other >= priority for other in self.requests.values())
        return ours < AT_ONCE

    def seconds(self, goal: GenerateText.Goal) -> float:
        """How long an answer takes, once it has begun; 0 where that is not known yet."""
        if not self.seen.tokens_per_second:
            return 0.0
        tokens = goal.sampling.max_tokens or USUAL_TOKENS
        return self.seen.time_to_first_token + (tokens - 1) / self.seen.tokens_per_second


def first_to_answer(members: Iterable[FleetMember], ahead: Mapping[FleetMember, int],
                    goal: GenerateText.Goal) -> FleetMember:
    """Return who will have answered ``goal`` first, behind the requests that are ahead of it.

    A node that has not answered anything yet passes for as fast as the fastest.
    """
    seconds = {member: member.seconds(goal) for member in members}
    fastest = min(filter(None, seconds.values()), default=1.0)
    return min(seconds, key=lambda member: (ahead[member] + 1) * (seconds[member] or fastest))
