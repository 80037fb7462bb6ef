"""Why an answer is as long as it is."""

from enum import IntEnum


class FinishReason(IntEnum):
    """The same numbers as the constants of ``flash_llm_msgs/msg/TokenChunk``."""

    RUNNING = 0
    STOP = 1
    LENGTH = 2
    CANCELLED = 3
    DEADLINE = 4
    ERROR = 5
