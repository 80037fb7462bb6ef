"""What keywords about values of one type say of them, and their opposites."""

from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
import json
from typing import Any

from .keywords import most
from .numbers import Numbers, TooHard
from .patterns import FORMATS, pattern_text
from .values import (
    ANYTHING,
    NOTHING,
    Arrays,
    Need,
    Objects,
    Properties,
    Strings,
    Values,
    Words,
    besides,
)


def with_rest(values: Values, need: Need) -> Values | None:
    """An object whose properties that no keyword has looked at meet the need."""
    if not isinstance(values, Objects):
        return values
    if not values.seen_all:
        values = values.both(Objects((Properties(
            tuple((name, ANYTHING) for name in sorted(values.seen)),
            tuple((pattern, ANYTHING) for pattern in sorted(values.seen_patterns)), need),)))
    return values and replace(values, seen_all=True)


def with_tail(values: Values, need: Need) -> Values | None:
    if not isinstance(values, Arrays):
        return values
    if not values.seen_all:
        values = values.both(Arrays((ANYTHING,) * values.seen, need))
    return values and replace(values, seen_all=True)


WORDS = {'null': ('null',), 'boolean': ('true', 'false')}


def of_types(names: list[str]) -> list[Values]:
    found: list[Values] = []
    words = frozenset(word for name in names for word in WORDS.get(name, ()))
    if words:
        found.append(Words(words))
    if 'number' in names or 'integer' in names:
        found.append(Numbers('any' if 'number' in names else 'integer'))
    found += [kind() for name, kind in (('string', Strings), ('array', Arrays),
                                        ('object', Objects)) if name in names]
    return found


def scalar(value: Any) -> Values:
    if value is None or isinstance(value, bool):
        return Words(frozenset({json.dumps(value)}))
    if isinstance(value, str):
        return Strings(values=frozenset({value}))
    return Numbers(values=frozenset({Fraction(value)}))


def without(value: Any) -> list[Values]:
    if value is None or isinstance(value, bool):
        return [Words(frozenset({'null', 'true', 'false'} - {json.dumps(value)})), *besides(Words)]
    if isinstance(value, str):
        return [Strings(excluded=frozenset({value})), *besides(Strings)]
    return [Numbers(excluded=frozenset({Fraction(value)})), *besides(Numbers)]


def gathered(found: list[Values]) -> list[Values]:
    """Without repetitions; lists of single values become one."""
    words = frozenset[str]().union(*(item.words for item in found if isinstance(item, Words)))
    numbers = frozenset[Fraction]().union(*(
        item.values for item in found if isinstance(item, Numbers) and item.values is not None))
    strings = frozenset[str]().union(*(
        item.values for item in found if isinstance(item, Strings) and item.values is not None))
    rest = [item for item in found if not isinstance(item, Words)
            and not (isinstance(item, Numbers | Strings) and item.values is not None)]
    lists: list[Values] = [kind for held, kind in (
        (words, Words(words)), (numbers, Numbers(values=numbers)),
        (strings, Strings(values=strings))) if held]
    return list(dict.fromkeys(lists + rest))


def assertion(keyword: str, value: Any) -> Values | None:
    """What a keyword about one type says of that type, None for others; raises TooHard."""
    if keyword == 'pattern':
        pattern_text(value)
    if keyword == 'format' and value not in FORMATS:
        raise TooHard(f'format is {value!r}; it must be one of {", ".join(FORMATS)}')
    return _ASSERTIONS[keyword](value) if keyword in _ASSERTIONS else None


_ASSERTIONS: dict[str, Callable[[Any], Values]] = {
    'minimum': lambda value: Numbers(low=Fraction(value)),
    'maximum': lambda value: Numbers(high=Fraction(value)),
    'exclusiveMinimum': lambda value: Numbers(low=Fraction(value), low_open=True),
    'exclusiveMaximum': lambda value: Numbers(high=Fraction(value), high_open=True),
    'multipleOf': lambda value: Numbers(multiple=Fraction(value)),
    'minLength': lambda value: Strings(low=int(value)),
    'maxLength': lambda value: Strings(high=most(value)),
    'pattern': lambda value: Strings(patterns=frozenset({(value, False)})),
    'format': lambda value: Strings(patterns=frozenset({(FORMATS[value], True)})),
    'minItems': lambda value: Arrays(low=int(value)),
    'maxItems': lambda value: Arrays(high=most(value)),
    'uniqueItems': lambda value: Arrays(unique=value),
    'required': lambda value: Objects(required=tuple(value)),
    'minProperties': lambda value: Objects(low=int(value)),
    'maxProperties': lambda value: Objects(high=most(value)),
}


def _above(kind: type[Strings | Arrays | Objects], value: Any) -> list[Values]:
    return [] if most(value) is None else [kind(low=int(value) + 1)]


# Values that do not meet a keyword: where no grammar tells them, none.
OPPOSITES: dict[str, Callable[[Any], list[Values]]] = {
    'minimum': lambda value: [Numbers(high=Fraction(value), high_open=True)],
    'maximum': lambda value: [Numbers(low=Fraction(value), low_open=True)],
    'exclusiveMinimum': lambda value: [Numbers(high=Fraction(value))],
    'exclusiveMaximum': lambda value: [Numbers(low=Fraction(value))],
    'multipleOf': lambda value: [Numbers(not_multiples=frozenset({Fraction(value)}))],
    'minLength': lambda value: [Strings(high=int(value) - 1)] if value else [],
    'maxLength': lambda value: _above(Strings, value),
    'pattern': lambda value: [Strings(unlike=frozenset({value}))],
    'format': lambda value: [],
    'minItems': lambda value: [Arrays(high=int(value) - 1)] if value else [],
    'maxItems': lambda value: _above(Arrays, value),
    'uniqueItems': lambda value: [],
    'propertyNames': lambda value: [],
    'required': lambda value: [Objects((Properties(((name, NOTHING),)),)) for name in value],
    'minProperties': lambda value: [Objects(high=int(value) - 1)] if value else [],
    'maxProperties': lambda value: _above(Objects, value),
}
