"""What loading takes of this process's memory, as measured."""

from typing import ClassVar

from flash_llm_ros.engine.memory.process_memory import resident_bytes


class Footprint:
    """Of one loading, from here on; libraries that an earlier one left in the process count, too.

    They stay when what they loaded is given up or closed, and the next loading uses them. The most
    that this can be is known from the loading that brought them; what the process has grown by
    beyond is its own. While another engine is open, both count them.
    """

    _last: ClassVar['Footprint | None'] = None

    def __init__(self) -> None:
        now, last = resident_bytes(), Footprint._last
        self._begun = self._bare = now
        self._stays = 0
        if last is not None:
            self._bare, self._stays = min(now, max(last._bare, now - last._stays)), last._stays

    def measured(self, least: int) -> int:
        """Bytes that were taken; `least` of them at least, which go when they are given up."""
        now = resident_bytes()
        self._stays, Footprint._last = max(self._stays, now - self._begun - least), self
        return max(now - self._bare, least)
