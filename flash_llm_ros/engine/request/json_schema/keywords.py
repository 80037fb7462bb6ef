"""The keywords of JSON Schema: which there are, what each has to hold, which say nothing."""

from collections.abc import Callable
from decimal import Decimal
from difflib import get_close_matches
from typing import Any

from .numbers import TooHard

Check = Callable[[Any], bool]
MOST_COUNT = 100_000        # of characters, items, properties: no answer is as long
TYPES = ('null', 'boolean', 'number', 'integer', 'string', 'array', 'object')


def is_number(value: Any) -> bool:
    return isinstance(value, int | Decimal) and not isinstance(value, bool)


def _is_count(value: Any) -> bool:
    return is_number(value) and value == int(value) and value >= 0


def _is_least(value: Any) -> bool:
    return _is_count(value) and value <= MOST_COUNT


def _is_schema(value: Any) -> bool:
    return isinstance(value, dict | bool)


def _is_schemas(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(map(_is_schema, value))


def _is_map(value: Any) -> bool:
    return isinstance(value, dict) and all(map(_is_schema, value.values()))


def _is_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


def _is_lists_of_names(value: Any) -> bool:
    return isinstance(value, dict) and all(map(_is_names, value.values()))


def _is_type(value: Any) -> bool:
    names = value if isinstance(value, list) else [value]
    return bool(names) and all(isinstance(name, str) and name in TYPES for name in names)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _groups(text: str, check: Check, *names: str) -> dict[str, tuple[str, Check]]:
    return dict.fromkeys(names, (text, check))


ASSERTIONS: dict[str, tuple[str, Check]] = {
    **_groups(f'one of {", ".join(TYPES)}, or a list of them', _is_type, 'type'),
    **_groups('a list', lambda value: isinstance(value, list), 'enum'),
    **_groups('any value', lambda value: True, 'const'),
    **_groups('a number', is_number, 'minimum', 'maximum', 'exclusiveMinimum',
              'exclusiveMaximum'),
    **_groups('a number above 0', lambda value: is_number(value) and value > 0, 'multipleOf'),
    **_groups(f'a whole number, 0 to {MOST_COUNT}', _is_least, 'minLength', 'minItems',
              'minProperties', 'minContains'),
    **_groups('a whole number, 0 or more', _is_count, 'maxLength', 'maxItems', 'maxProperties',
              'maxContains'),
    **_groups('a text', _is_text, 'pattern', 'format', '$ref', '$dynamicRef'),
    **_groups('true or false', lambda value: isinstance(value, bool), 'uniqueItems'),
    **_groups('a schema, which is an object, true or false', _is_schema, 'items', 'contains',
              'additionalProperties', 'propertyNames', 'not', 'if', 'then', 'else',
              'unevaluatedItems', 'unevaluatedProperties'),
    **_groups('a list of schemas', _is_schemas, 'allOf', 'anyOf', 'oneOf', 'prefixItems'),
    **_groups('an object of schemas', _is_map, 'properties', 'patternProperties',
              'dependentSchemas'),
    **_groups('a list of names', _is_names, 'required'),
    **_groups('an object of lists of names', _is_lists_of_names, 'dependentRequired'),
}
_REMARKS = ('$anchor', '$comment', '$defs', '$dynamicAnchor', '$id', '$schema', '$vocabulary',
            'contentEncoding', 'contentMediaType', 'contentSchema', 'default', 'definitions',
            'deprecated', 'description', 'examples', 'id', 'readOnly', 'title', 'writeOnly')
_OLD = {'additionalItems': 'items', 'dependencies': 'dependentRequired or dependentSchemas',
        '$recursiveRef': '$dynamicRef', '$recursiveAnchor': '$dynamicAnchor'}
_DIALECTS = ('json-schema.org/draft/2020-12/schema', 'json-schema.org/draft/2019-09/schema',
             'json-schema.org/draft-07/schema', 'json-schema.org/draft-06/schema')


def most(value: int | Decimal | None) -> int | None:
    """A maximum, None where no answer comes to it."""
    return None if value is None or value > MOST_COUNT else int(value)


def check_keywords(schema: dict[str, Any]) -> None:
    """Raise TooHard for what is no keyword, or holds the wrong thing."""
    for keyword, value in schema.items():
        if keyword in ASSERTIONS:
            wanted, check = ASSERTIONS[keyword]
            if not check(value):
                raise TooHard(f'{keyword} is {str(value)[:60]!r}; it must be {wanted}')
        elif keyword in _OLD:
            raise TooHard(f'{keyword} is of an older draft; in 2020-12 it is {_OLD[keyword]}')
        elif keyword == '$schema':
            if not isinstance(value, str) or value.partition('://')[2].rstrip('#') not in _DIALECTS:
                raise TooHard(f'$schema is {value!r}; it must be draft 2020-12')
        elif keyword not in _REMARKS:
            meant = get_close_matches(keyword, ASSERTIONS, n=1, cutoff=0.85)
            if meant:
                raise TooHard(f'{keyword} is no keyword; is {meant[0]} meant?')
