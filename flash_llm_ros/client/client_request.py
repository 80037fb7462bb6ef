"""A request of a client, from the call to the node's result."""

import time

from rclpy.action.client import ClientGoalHandle

from flash_llm_msgs.action import GenerateText
from flash_llm_ros.client.answer import PendingAnswer


class ClientRequest:
    """One goal of the client: its answer and how far it has come."""

    def __init__(self, goal: GenerateText.Goal, answer: PendingAnswer) -> None:
        self.goal = goal
        self.answer = answer
        self.asked_at = time.monotonic()
        self.send_at = self.asked_at            # not before
        self.is_taken = False                   # the executor has it
        self.servers: set[bytes] = set()    # who may have it, once it is sent
        self.is_cancelling = False
        self.handle: ClientGoalHandle | None = None
        self.ended_at: float | None = None      # where its result is not here yet
