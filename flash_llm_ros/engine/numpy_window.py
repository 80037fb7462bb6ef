"""Which groups are in which cache slots of the NumPy core: least recently used ones yield."""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass
class GroupCache:
    """Least recently used groups first; ``fresh`` ones were prefetched and not used yet."""

    size: int = 0
    free: list[int] = field(default_factory=list)
    slots: OrderedDict[int, int] = field(default_factory=OrderedDict)
    fresh: set[int] = field(default_factory=set)

    def touch(self, groups: Sequence[int]) -> None:
        for group in groups:
            self.slots.move_to_end(group)

    def claim(self, group: int) -> None:
        if self.free:
            self.slots[group] = self.free.pop()
        else:
            victim, self.slots[group] = self.slots.popitem(last=False)
            self.fresh.discard(victim)

    def drop(self, group: int) -> None:
        self.free.append(self.slots.pop(group))
