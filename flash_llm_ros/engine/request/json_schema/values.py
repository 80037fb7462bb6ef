"""Sets of JSON values, type by type: what a schema says of the values of one type.

A `Need` is a conjunction of schemas that a value has to meet, each as a number of the reader's and
whether it is meant or its opposite. Nested values have needs, so that a set is finite however a
schema refers to itself.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from .numbers import Numbers
from .patterns import matches

Need = frozenset[tuple[int, bool]]
ANYTHING: Need = frozenset()
NOTHING: Need = frozenset({(-1, True)})


@dataclass(frozen=True)
class Words:
    """Of null, true and false."""

    words: frozenset[str] = frozenset({'null', 'true', 'false'})

    def both(self, other: 'Words') -> 'Words | None':
        words = self.words & other.words
        return Words(words) if words else None


@dataclass(frozen=True)
class Strings:
    """Strings of so many characters that match these patterns and not those."""

    low: int = 0
    high: int | None = None
    patterns: frozenset[tuple[str, bool]] = frozenset()     # with whether it is the whole string
    unlike: frozenset[str] = frozenset()
    values: frozenset[str] | None = None                    # no others
    excluded: frozenset[str] = frozenset()

    def __contains__(self, text: str) -> bool:
        return (self.low <= len(text) and (self.high is None or len(text) <= self.high)
                and all(matches(f'^(?:{pattern})$' if whole else pattern, text)
                        for pattern, whole in self.patterns)
                and not any(matches(pattern, text) for pattern in self.unlike)
                and (self.values is None or text in self.values) and text not in self.excluded)

    def both(self, other: 'Strings') -> 'Strings | None':
        found = Strings(max(self.low, other.low), least(self.high, other.high),
                        self.patterns | other.patterns, self.unlike | other.unlike,
                        None, self.excluded | other.excluded)
        lists = [item.values for item in (self, other) if item.values is not None]
        if lists:
            values = frozenset(text for text in frozenset.intersection(*lists) if text in found)
            return Strings(values=values) if values else None
        return None if found.high is not None and found.low > found.high else found


@dataclass(frozen=True)
class Contained:
    """So many items of an array meet a need."""

    need: Need
    low: int = 1
    high: int | None = None


@dataclass(frozen=True)
class Arrays:
    """Arrays: what their first items are, and all behind them."""

    prefix: tuple[Need, ...] = ()
    items: Need = ANYTHING
    low: int = 0
    high: int | None = None
    unique: bool = False
    contained: frozenset[Contained] = frozenset()
    # What keywords have looked at, for unevaluatedItems.
    seen: int = 0
    seen_all: bool = False

    def need(self, index: int) -> Need:
        return self.prefix[index] if index < len(self.prefix) else self.items

    def both(self, other: 'Arrays') -> 'Arrays | None':
        count = max(len(self.prefix), len(other.prefix))
        found = Arrays(
            tuple(self.need(index) | other.need(index) for index in range(count)),
            self.items | other.items, max(self.low, other.low), least(self.high, other.high),
            self.unique or other.unique, self.contained | other.contained,
            max(self.seen, other.seen), self.seen_all or other.seen_all)
        return None if found.high is not None and found.low > found.high else found


@dataclass(frozen=True)
class Properties:
    """What one schema says of an object's properties."""

    named: tuple[tuple[str, Need], ...] = ()
    patterns: tuple[tuple[str, Need], ...] = ()
    others: Need = ANYTHING

    def need(self, name: str) -> Need:
        found = [need for known, need in self.named if known == name]
        found += [need for pattern, need in self.patterns if matches(pattern, name)]
        return ANYTHING.union(*found) if found else self.others


@dataclass(frozen=True)
class Objects:
    """Objects: what all these schemas say of their properties."""

    properties: tuple[Properties, ...] = ()
    required: tuple[str, ...] = ()
    low: int = 0
    high: int | None = None
    names: Need = ANYTHING
    # What keywords have looked at, for unevaluatedProperties.
    seen: frozenset[str] = frozenset()
    seen_patterns: frozenset[str] = frozenset()
    seen_all: bool = False

    def need(self, name: str) -> Need:
        return ANYTHING.union(*(part.need(name) for part in self.properties))

    def all_names(self) -> list[str]:
        """Every name that is mentioned, in the order in which they are written."""
        named = [name for part in self.properties for name, _ in part.named]
        return list(dict.fromkeys([*named, *self.required]))

    def both(self, other: 'Objects') -> 'Objects | None':
        found = Objects(
            tuple(dict.fromkeys(self.properties + other.properties)),
            tuple(dict.fromkeys(self.required + other.required)),
            max(self.low, other.low), least(self.high, other.high), self.names | other.names,
            self.seen | other.seen, self.seen_patterns | other.seen_patterns,
            self.seen_all or other.seen_all)
        if found.high is not None and max(found.low, len(found.required)) > found.high:
            return None
        if any(found.need(name) >= NOTHING for name in found.required):
            return None
        return found


Values = Words | Numbers | Strings | Arrays | Objects
EVERYTHING: tuple[Values, ...] = (Words(), Numbers(), Strings(), Arrays(), Objects())


def least(one: int | None, other: int | None) -> int | None:
    """The lower of two limits, where None is none."""
    return min((limit for limit in (one, other) if limit is not None), default=None)


def besides(*kinds: type) -> list[Values]:
    """All values of the other types."""
    return [values for values in EVERYTHING if not isinstance(values, kinds)]


def meet(one: Iterable[Values], other: Iterable[Values]) -> list[Values]:
    """What is in both unions."""
    others = list(other)
    found = [both for values in one for more in others if type(values) is type(more)
             and (both := _both(values, more)) is not None]
    return list(dict.fromkeys(found))


def _both(one: Any, other: Any) -> Values | None:
    return one if one == other else one.both(other)


def unseen(values: Values) -> Values:
    """Without what its keywords have looked at: nothing, where they were to fail."""
    if isinstance(values, Arrays):
        return replace(values, seen=0, seen_all=False)
    if isinstance(values, Objects):
        return replace(values, seen=frozenset(), seen_patterns=frozenset(), seen_all=False)
    return values
