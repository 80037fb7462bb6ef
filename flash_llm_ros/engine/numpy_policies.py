"""The window policies in plain Python: the same choices as the native ones, found by looking.

Each sees the idle groups of the cache only. `add(group, used)`: it is idle from now on, because it
was used or else only predicted; `take(group)`: it is needed; `victim()`: takes the group that
should yield, None if none is idle; `token()`: another token begins.
"""

from collections import Counter
import math
from typing import Protocol

import numpy as np

from flash_llm_ros.engine.core_arguments import check

DEFAULT_POLICY = 'least_likely'
POLICY_FORM = ('one of least_recent, segmented, arbitrary, least_likely, sliding_window, '
               'least_frequent, hot_set; the last four may have a number of tokens, as '
               'sliding_window:4')
_MOST_COUNT = 255


class WindowPolicy(Protocol):
    def add(self, group: int, used: bool) -> None: ...

    def take(self, group: int) -> None: ...

    def victim(self) -> int | None: ...

    def token(self) -> None: ...


class LeastRecent:
    """The least recently used group yields; what was only predicted counts as used."""

    def __init__(self) -> None:
        self._order: list[int] = []     # oldest first

    def add(self, group: int, used: bool) -> None:
        self._order.append(group)

    def take(self, group: int) -> None:
        self._order.remove(group)

    def victim(self) -> int | None:
        return self._order.pop(0) if self._order else None

    def token(self) -> None:
        pass


class SlidingWindow:
    """What the last `tokens` tokens did not need yields, oldest first; else the newest."""

    def __init__(self, tokens: int) -> None:
        self._tokens, self._now = tokens, 0
        self._order: list[tuple[int, int]] = []     # group, token of its latest use

    def add(self, group: int, used: bool) -> None:
        if used:
            self._order.append((group, self._now))
        else:
            self._order.insert(0, (group, -self._tokens - 1))

    def take(self, group: int) -> None:
        self._order = [pair for pair in self._order if pair[0] != group]

    def victim(self) -> int | None:
        if not self._order:
            return None
        outside = self._order[0][1] < self._now - self._tokens
        return self._order.pop(0 if outside else -1)[0]

    def token(self) -> None:
        self._now += 1


class _Counts:
    """Uses per group, halved every `half_life` tokens."""

    def __init__(self, half_life: int) -> None:
        self._half_life, self._tokens = half_life, 0
        self._counts: Counter[int] = Counter()

    def note(self, group: int, used: bool) -> int:
        self._counts[group] = min(self._counts[group] + used, _MOST_COUNT)
        return self._counts[group]

    def token(self) -> bool:
        self._tokens += 1
        halved = self._tokens % self._half_life == 0
        if halved:
            self._counts = Counter({group: count // 2 for group, count in self._counts.items()})
        return halved


class _ByCount:
    """Idle groups by count; `least()` is the newest of those with the least count."""

    def __init__(self) -> None:
        self.groups: list[tuple[int, int]] = []     # group, count; oldest first in each count

    def add(self, group: int, count: int) -> None:
        self.groups.append((group, count))

    def take(self, group: int) -> None:
        self.groups = [pair for pair in self.groups if pair[0] != group]

    def least(self) -> tuple[int, int] | None:
        return min(reversed(self.groups), key=lambda pair: pair[1], default=None)

    def halve(self) -> None:
        # Where two counts become one, the groups of the larger are the newer.
        self.groups = [(group, count // 2)
                       for group, count in sorted(self.groups, key=lambda pair: pair[1])]


class LeastFrequent:
    """The least frequently used group yields; among equals the newest."""

    def __init__(self, half_life: int) -> None:
        self._counts, self._order = _Counts(half_life), _ByCount()

    def add(self, group: int, used: bool) -> None:
        self._order.add(group, self._counts.note(group, used))

    def take(self, group: int) -> None:
        self._order.take(group)

    def victim(self) -> int | None:
        least = self._order.least()
        if least is None:
            return None
        self._order.take(least[0])
        return least[0]

    def token(self) -> None:
        if self._counts.token():
            self._order.halve()


class LeastLikely:
    """The group least likely to be needed at its section's next turn yields; of equals the newest.

    A use is worth half after `half_life` tokens. What that comes to is counted in levels; a level
    is what one token without a use takes off.
    """

    def __init__(self, half_life: int) -> None:
        self._half_life, self._now = half_life, 0
        self._fading = math.exp2(-1 / half_life)
        self._uses: dict[int, tuple[float, int]] = {}       # weight, token of the latest look
        self._before: list[tuple[int, int]] = []    # group, level; oldest first in each level
        self._current: list[tuple[int, int]] = []   # the same, of this token

    def add(self, group: int, used: bool) -> None:
        weight, token = self._uses.get(group, (0.0, 0))
        weight = float(np.float32(weight * math.pow(self._fading, self._now - token) + used))
        self._uses[group] = weight, self._now
        share = max(weight * (1 - self._fading), 1e-9)
        most = 6 * self._half_life
        level = most + math.floor(math.log2(share) * self._half_life + 0.5)
        self._current.append((group, min(max(level, 0), most)))

    def take(self, group: int) -> None:
        self._before = [pair for pair in self._before if pair[0] != group]
        self._current = [pair for pair in self._current if pair[0] != group]

    def victim(self) -> int | None:
        newest_first = [*reversed(self._current), *reversed(self._before)]
        if not newest_first:
            return None
        group = min(newest_first, key=lambda pair: pair[1])[0]
        self.take(group)
        return group

    def token(self) -> None:
        self._now += 1
        fallen = [(group, max(level - 1, 0)) for group, level
                  in sorted(self._before, key=lambda pair: pair[1])]
        self._before, self._current = fallen + self._current, []


class HotSet:
    """Half of the slots keep the most frequently used groups, the rest are least recently used."""

    def __init__(self, slots: int, half_life: int) -> None:
        self._counts, self._hot = _Counts(half_life), _ByCount()
        self._rest: list[int] = []
        self._most_hot = slots // 2

    def add(self, group: int, used: bool) -> None:
        count, least = self._counts.note(group, used), self._hot.least()
        if len(self._hot.groups) == self._most_hot and least is not None and count > least[1]:
            self._hot.take(least[0])
            self._rest.append(least[0])
        if len(self._hot.groups) < self._most_hot:
            self._hot.add(group, count)
        else:
            self._rest.append(group)

    def take(self, group: int) -> None:
        if group in self._rest:
            self._rest.remove(group)
        else:
            self._hot.take(group)

    def victim(self) -> int | None:
        if self._rest:
            return self._rest.pop(0)
        least = self._hot.least()
        if least is None:
            return None
        self._hot.take(least[0])
        return least[0]

    def token(self) -> None:
        if self._counts.token():
            self._hot.halve()


class Segmented:
    """A group used twice moves to a protected list of four fifths of the slots."""

    def __init__(self, slots: int) -> None:
        self._most_protected = slots * 4 // 5
        self._trial: list[int] = []
        self._protected: list[int] = []
        self._seen: set[int] = set()

    def add(self, group: int, used: bool) -> None:
        if group not in self._seen or not used or not self._most_protected:
            self._seen.add(group)
            self._trial.append(group)
            return
        self._protected.append(group)
        if len(self._protected) > self._most_protected:
            self._trial.append(self._protected.pop(0))

    def take(self, group: int) -> None:
        (self._trial if group in self._trial else self._protected).remove(group)

    def victim(self) -> int | None:
        order = self._trial or self._protected
        if not order:
            return None
        self._seen.discard(order[0])
        return order.pop(0)

    def token(self) -> None:
        pass


class Arbitrary:
    """Any idle group yields, by a fixed sequence of pseudo-random numbers (xorshift)."""

    def __init__(self) -> None:
        self._idle: list[int] = []
        self._state = 88172645463325252

    def add(self, group: int, used: bool) -> None:
        self._idle.append(group)

    def take(self, group: int) -> None:
        position = self._idle.index(group)
        self._idle[position] = self._idle[-1]
        self._idle.pop()

    def victim(self) -> int | None:
        if not self._idle:
            return None
        state, mask = self._state, 2**64 - 1
        state ^= state << 13 & mask
        state ^= state >> 7
        state ^= state << 17 & mask
        self._state = state
        group = self._idle[state % len(self._idle)]
        self.take(group)
        return group

    def token(self) -> None:
        pass


def make_policy(name: str, slots: int) -> WindowPolicy:
    """By name, some with a number of tokens (`sliding_window:4`); ValueError otherwise."""
    kind, colon, number = name.partition(':')
    counted = {'least_likely': (4, LeastLikely), 'sliding_window': (4, SlidingWindow),
               'least_frequent': (32, LeastFrequent),
               'hot_set': (32, lambda half_life: HotSet(slots, half_life))}
    plain = {'least_recent': LeastRecent, 'segmented': lambda: Segmented(slots),
             'arbitrary': Arbitrary}
    check((kind in counted or (kind in plain and not colon))
          and (not colon or (number.isascii() and number.isdigit() and 1 <= int(number) < 10**6)),
          'policy', name, POLICY_FORM)
    if kind in counted:
        usual, make = counted[kind]
        return make(int(number) if colon else usual)
    return plain[kind]()
