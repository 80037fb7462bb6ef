"""A request of a fleet, which may go from one of its nodes to another."""

import math
import time

from flash_llm_msgs.action import GenerateText
from flash_llm_ros.client.answer import PendingAnswer
from flash_llm_ros.client.fleet_member import FleetMember

MOST_LOST = 2           # nodes that may leave under a request: it may be what ends them


class FleetRequest:
    """One request of the fleet, wherever it is."""

    def __init__(self, goal: GenerateText.Goal, answer: PendingAnswer, order: int, *,
                 model: str, again: bool, whole: bool) -> None:
        self.goal = goal
        self.answer = answer
        self.rank = -goal.priority, order
        self.again = again      # also after its first token
        self.whole = whole      # nobody sees the text before its end
        self.ends_at = time.monotonic() + goal.deadline if goal.deadline > 0 else math.inf
        self.nowhere_since = time.monotonic()   # when there was last a node for it
        self.member: FleetMember | None = None  # who has it
        self.pending: PendingAnswer | None = None
        self.attempt = 0
        self.text = ''          # of this attempt
        self.shown = ''         # of all attempts
        self.asked = ''         # model of this attempt
        self.model = model      # of the nodes that may answer, and of who said what was shown
        self.lost = 0           # nodes that have left under it
        self.failed_at: set[str] = set()

    @property
    def may_be_sent_again(self) -> bool:
        """Whether another node may have it, when the one that has it leaves."""
        return self.lost < MOST_LOST and (self.again or not self.text)
