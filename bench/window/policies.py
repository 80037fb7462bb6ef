"""Window policies: which idle group of a cache yields. `least_likely` chooses as the core does.

A policy sees the idle groups only. `add(group)`: it is idle from now on, because it was used;
`take(group)`: it is needed; `victim()`: takes the group that should yield, of which there is one
at least; `token()`: another token begins.
"""

from collections import Counter
from collections.abc import Callable
import math
from typing import Protocol

import numpy as np

_MOST_COUNT = 255
FORM = ('one of least_recent, segmented, arbitrary, least_likely, sliding_window, least_frequent, '
        'hot_set; the last four may have a number of tokens, as sliding_window:4')


class WindowPolicy(Protocol):
    def add(self, group: int) -> None: ...

    def take(self, group: int) -> None: ...

    def victim(self) -> int: ...

    def token(self) -> None: ...


class LeastRecent:
    """The least recently used group yields."""

    def __init__(self) -> None:
        self._groups: dict[int, None] = {}      # oldest first

    def add(self, group: int) -> None:
        self._groups[group] = None

    def take(self, group: int) -> None:
        del self._groups[group]

    def victim(self) -> int:
        group = next(iter(self._groups))
        del self._groups[group]
        return group

    def token(self) -> None:
        pass


class SlidingWindow:
    """What the last `tokens` tokens did not need yields, oldest first; else the newest."""

    def __init__(self, tokens: int) -> None:
        self._tokens, self._now = tokens, 0
        self._last_use: dict[int, int] = {}     # oldest first

    def add(self, group: int) -> None:
        self._last_use[group] = self._now

    def take(self, group: int) -> None:
        del self._last_use[group]

    def victim(self) -> int:
        oldest = next(iter(self._last_use))
        if self._last_use[oldest] < self._now - self._tokens:
            del self._last_use[oldest]
            return oldest
        return self._last_use.popitem()[0]

    def token(self) -> None:
        self._now += 1


class _Levels:
    """Groups by level, oldest first in each."""

    def __init__(self) -> None:
        self._groups: dict[int, dict[int, None]] = {}
        self._level_of: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self._level_of)

    def __contains__(self, group: int) -> bool:
        return group in self._level_of

    def add(self, group: int, level: int) -> None:
        self._groups.setdefault(level, {})[group] = None
        self._level_of[group] = level

    def take(self, group: int) -> None:
        level = self._level_of.pop(group)
        del self._groups[level][group]
        if not self._groups[level]:
            del self._groups[level]

    def lowest(self) -> tuple[int, int]:
        """The lowest level and the newest group in it."""
        level = min(self._groups)
        return level, next(reversed(self._groups[level]))

    def move(self, change: Callable[[int], int]) -> None:
        """Where two levels become one, the groups of the higher are the newer."""
        for level in sorted(self._groups):
            groups = self._groups.pop(level)
            for group in groups:
                self.add(group, change(level))

    def absorb(self, newer: '_Levels') -> None:
        for level, groups in newer._groups.items():
            for group in groups:
                self.add(group, level)


class _Counts:
    """Uses per group, halved every `half_life` tokens."""

    def __init__(self, half_life: int) -> None:
        self._half_life, self._tokens = half_life, 0
        self._counts: Counter[int] = Counter()

    def one_more(self, group: int) -> int:
        self._counts[group] = min(self._counts[group] + 1, _MOST_COUNT)
        return self._counts[group]

    def token(self, groups: _Levels) -> None:
        """Halves the levels of groups that lie by their counts, too."""
        self._tokens += 1
        if self._tokens % self._half_life == 0:
            self._counts = Counter({group: count // 2 for group, count in self._counts.items()})
            groups.move(lambda count: count // 2)


class LeastFrequent:
    """The least frequently used group yields; among equals the newest."""

    def __init__(self, half_life: int) -> None:
        self._counts, self._idle = _Counts(half_life), _Levels()

    def add(self, group: int) -> None:
        self._idle.add(group, self._counts.one_more(group))

    def take(self, group: int) -> None:
        self._idle.take(group)

    def victim(self) -> int:
        _, group = self._idle.lowest()
        self._idle.take(group)
        return group

    def token(self) -> None:
        self._counts.token(self._idle)


class LeastLikely:
    """The group least likely to be needed at its layer's next turn yields; of equals the newest.

    A use is worth half after `half_life` tokens. What that comes to is counted in levels; a level
    is what one token without a use takes off.
    """

    def __init__(self, half_life: int) -> None:
        self._half_life, self._now = half_life, 0
        self._fading = 2.0 ** (-1 / half_life)
        self._uses: dict[int, tuple[float, int]] = {}       # weight, token of the latest use
        self._before, self._current = _Levels(), _Levels()  # last used by earlier tokens, by this

    def add(self, group: int) -> None:
        weight, token = self._uses.get(group, (0.0, 0))
        weight = float(np.float32(weight * math.pow(self._fading, self._now - token) + 1))
        self._uses[group] = weight, self._now
        share = max(weight * (1 - self._fading), 1e-9)
        most = 6 * self._half_life
        level = most + math.floor(math.log2(share) * self._half_life + 0.5)
        self._current.add(group, min(max(level, 0), most))

    def take(self, group: int) -> None:
        (self._current if group in self._current else self._before).take(group)

    def victim(self) -> int:
        _, lists = min((groups.lowest()[0], number) for number, groups
                       in enumerate((self._current, self._before)) if groups)
        groups = (self._current, self._before)[lists]
        _, group = groups.lowest()
        groups.take(group)
        return group

    def token(self) -> None:
        self._now += 1
        self._before.move(lambda level: max(level - 1, 0))
        self._before.absorb(self._current)
        self._current = _Levels()


class HotSet:
    """Half of the slots keep the most frequently used groups, the rest are least recently used."""

    def __init__(self, slots: int, half_life: int) -> None:
        self._counts, self._hot, self._rest = _Counts(half_life), _Levels(), LeastRecent()
        self._rest_size, self._most_hot = 0, slots // 2

    def add(self, group: int) -> None:
        count = self._counts.one_more(group)
        if self._hot and len(self._hot) == self._most_hot:
            level, coldest = self._hot.lowest()
            if count > level:
                self._hot.take(coldest)
                self._to_rest(coldest)
        if len(self._hot) < self._most_hot:
            self._hot.add(group, count)
        else:
            self._to_rest(group)

    def take(self, group: int) -> None:
        if group in self._hot:
            self._hot.take(group)
        else:
            self._rest.take(group)
            self._rest_size -= 1

    def victim(self) -> int:
        if self._rest_size:
            self._rest_size -= 1
            return self._rest.victim()
        _, group = self._hot.lowest()
        self._hot.take(group)
        return group

    def token(self) -> None:
        self._counts.token(self._hot)

    def _to_rest(self, group: int) -> None:
        self._rest.add(group)
        self._rest_size += 1


class Segmented:
    """A group used twice moves to a protected list of four fifths of the slots."""

    def __init__(self, slots: int) -> None:
        self._most_protected = slots * 4 // 5
        self._trial: dict[int, None] = {}       # oldest first, like the protected ones
        self._protected: dict[int, None] = {}
        self._seen: set[int] = set()

    def add(self, group: int) -> None:
        if group not in self._seen or not self._most_protected:
            self._seen.add(group)
            self._trial[group] = None
            return
        self._protected[group] = None
        if len(self._protected) > self._most_protected:
            oldest = next(iter(self._protected))
            del self._protected[oldest]
            self._trial[oldest] = None

    def take(self, group: int) -> None:
        del (self._trial if group in self._trial else self._protected)[group]

    def victim(self) -> int:
        groups = self._trial or self._protected
        group = next(iter(groups))
        del groups[group]
        self._seen.discard(group)
        return group

    def token(self) -> None:
        pass


class Arbitrary:
    """Any idle group yields, by a fixed sequence of pseudo-random numbers (xorshift)."""

    def __init__(self) -> None:
        self._idle: list[int] = []
        self._place: dict[int, int] = {}
        self._state = 88172645463325252

    def add(self, group: int) -> None:
        self._place[group] = len(self._idle)
        self._idle.append(group)

    def take(self, group: int) -> None:
        place, last = self._place.pop(group), self._idle.pop()
        if last != group:
            self._idle[place], self._place[last] = last, place

    def victim(self) -> int:
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
    if kind in plain and not colon:
        return plain[kind]()
    if kind in counted and (not colon or (number.isdecimal() and int(number) > 0)):
        usual, make = counted[kind]
        return make(int(number) if colon else usual)
    raise ValueError(f'policy is {name!r}; it must be {FORM}')
