"""What one rendering of a template may do, counted in steps, and how long its values may be."""

from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

import jinja2
from jinja2.utils import Namespace

CHARACTERS_PER_STEP = 16
_CHARACTERS = 256 * 1024    # of a value and of the output, beside four times the messages'
_PER_ENTRY = 8              # what an entry of a list counts, in characters
_MOST_DEPTH = 32
_MOST_BITS = 60             # of an integer: of longer ones Python has many with the same hash


class TooMuchError(jinja2.TemplateRuntimeError):
    """A template would take more time or memory than its messages can need."""


class Work:
    """What one rendering may still do."""

    def __init__(self, steps: int, characters: int) -> None:
        """`characters`: of the messages."""
        self._steps = steps + characters
        self.largest = _CHARACTERS + 4 * characters

    def spend(self, steps: int) -> None:
        self._steps -= steps
        if self._steps < 0:
            raise TooMuchError('it takes too many steps')

    def require(self, characters: int) -> None:
        """Raise TooMuchError unless a value may be so long."""
        if characters > self.largest:
            raise TooMuchError(f'it makes a value of more than {self.largest} characters')

    def size(self, value: Any, depth: int = 0) -> int:
        """How long a value is with all that is in it, in characters."""
        if isinstance(value, str):
            return len(value)
        if isinstance(value, int):
            check_bits(value.bit_length())
            return value.bit_length() // 3 + 1
        if isinstance(value, Namespace):
            value = object.__getattribute__(value, '_Namespace__attrs')
        if isinstance(value, range):
            return _PER_ENTRY * len(value)
        if not isinstance(value, Collection):
            return 1
        if depth > _MOST_DEPTH:
            raise TooMuchError('it makes a value that is nested too deeply')
        total = 1
        for entry in value:
            total += _PER_ENTRY + self.size(entry, depth + 1)
            if isinstance(value, Mapping):
                total += self.size(value[entry], depth + 1)
            self.require(total)
        return total

    def length(self, value: Any) -> int:
        """The same without what is in its entries."""
        if isinstance(value, Collection) and not isinstance(value, str):
            return 1 + _PER_ENTRY * len(value)
        return self.size(value)

    def seen(self, value: Any, deep: bool = False) -> Any:
        """A value that somebody looks at, or at all that is in it, too.

        What an iterator gives is counted as it comes.
        """
        if isinstance(value, Iterator):
            return self.counted(value, 1)
        size = self.size(value) if deep else self.length(value)
        self.require(size)
        self.spend(1 + size // CHARACTERS_PER_STEP)
        return value

    def taken(self, value: Any, deep: bool = False) -> Any:
        """A value that is given to a function; never an iterator."""
        if isinstance(value, Iterator):
            value = list(self.counted(value, 1))
        return self.seen(value, deep)

    def counted(self, entries: Iterable[Any], steps: int) -> Iterator[Any]:
        """The entries, of which each costs so many steps."""
        for entry in entries:
            self.spend(steps)
            yield entry


def check_bits(bits: int) -> None:
    if bits > _MOST_BITS:
        raise TooMuchError(f'it makes a number of more than {_MOST_BITS} bits')
