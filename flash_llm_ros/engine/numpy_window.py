"""Which groups are in which cache slots of the NumPy core, and which one yields."""

from dataclasses import dataclass, field

from flash_llm_ros.engine.numpy_policies import LeastRecent, WindowPolicy


@dataclass
class GroupCache:
    """A group is claimed (in use), expected (prefetched for a section to come), or idle.

    Only idle groups yield, as the policy says, and if there are none the one expected longest.
    `fresh` groups were prefetched and not used yet, `fetched` ones are misses of the next use.
    """

    free: list[int] = field(default_factory=list)
    policy: WindowPolicy = field(default_factory=LeastRecent)
    slots: dict[int, int] = field(default_factory=dict)
    expected: dict[int, int] = field(default_factory=dict)      # group -> section
    fresh: set[int] = field(default_factory=set)
    fetched: set[int] = field(default_factory=set)
    _claimed: set[int] = field(default_factory=set)
    _last_section: int = -1

    def __post_init__(self) -> None:
        self.size = len(self.free)

    def use(self, section: int, groups: list[int]) -> list[int]:
        """Claim a slot for every group, no more than `size`; returns those that were absent."""
        if not groups:
            return []
        if section <= self._last_section:
            self.policy.token()
        self._last_section = section
        missing = [group for group in groups if group not in self.slots]
        for group in groups:
            if group in self.slots:
                self._claim(group)
        self._settle(section)
        for group in missing:
            if not self._admit(group):
                self.drop(next(iter(self.expected)))
                self._admit(group)
        return missing

    def rest(self, groups: list[int]) -> None:
        """Groups of the latest `use` become idle; dropped ones are left out."""
        for group in groups:
            if group in self._claimed:
                self._claimed.remove(group)
                self.policy.add(group, True)

    def expect(self, section: int, groups: list[int]) -> list[int]:
        """Keep these groups until the section's turn, as far as idle slots go; returns the new."""
        if not groups:
            return []
        self._settle(section)
        for group in groups:
            if group in self.slots:
                self._claim(group)
                self._expect(group, section)
        missing = []
        for group in groups:
            if group not in self.slots:
                if not self._admit(group):
                    break
                self._expect(group, section)
                missing.append(group)
        return missing

    def drop(self, group: int) -> None:
        """Give the group's slot free, whatever it was."""
        self._claim(group)
        self._claimed.remove(group)
        self.fresh.discard(group)
        self.fetched.discard(group)
        self.free.append(self.slots.pop(group))

    def _claim(self, group: int) -> None:
        if self.expected.pop(group, None) is None and group not in self._claimed:
            self.policy.take(group)
        self._claimed.add(group)

    def _admit(self, group: int) -> bool:
        if not self.free:
            victim = self.policy.victim()
            if victim is None:
                return False
            self._claimed.add(victim)
            self.drop(victim)
        self.slots[group] = self.free.pop()
        self._claimed.add(group)
        return True

    def _expect(self, group: int, section: int) -> None:
        self._claimed.remove(group)
        self.expected[group] = section

    def _settle(self, section: int) -> None:
        for group in [group for group, owner in self.expected.items() if owner == section]:
            del self.expected[group]
            self.policy.add(group, False)
