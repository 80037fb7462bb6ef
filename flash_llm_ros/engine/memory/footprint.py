"""What loading takes of this process's memory, as measured."""

from typing import ClassVar

from flash_llm_ros.engine.memory.process_memory import resident_bytes


class Footprint:
    """Of one loading, from here on; libraries that an earlier one left in the process count, too.

    They stay when what they loaded is given up or closed, and the next loading uses them: the same
    parts take the same again. The most that this can be is known from the loading that brought
    them; what the process has grown by beyond is its own.
    """

    _bare: ClassVar[int | None] = None      # bytes of the process before its first loading
    _stays: ClassVar[int] = 0               # that a loading took beside what goes with it

    def __init__(self) -> None:
        self._begun = resident_bytes()
        if Footprint._bare is None:
            Footprint._bare = self._begun

    def measured(self, least: int) -> int:
        """Bytes that were taken; `least` of them at least, which go when they are given up."""
        now = resident_bytes()
        taken = max(now - self._begun, least)
        with_earlier = min(now - Footprint._bare, least + Footprint._stays)
        Footprint._stays = max(Footprint._stays, taken - least)
        return max(taken, with_earlier)
