"""What a schema says, as a union of sets of values of one type (a disjunctive normal form).

A schema's opposite may be smaller than it is, never larger: what no grammar can leave out (that
some other property is wrong, say) is not among it. So an answer always validates.
"""

from decimal import Decimal, InvalidOperation
import json
from typing import Any

from .assertions import (
    OPPOSITES,
    WORDS,
    assertion,
    gathered,
    of_types,
    scalar,
    with_rest,
    with_tail,
    without,
)
from .keywords import ASSERTIONS, check_keywords, most
from .numbers import Numbers, TooHard
from .patterns import pattern_text
from .references import Document
from .values import (
    ANYTHING,
    EVERYTHING,
    NOTHING,
    Arrays,
    Contained,
    Need,
    Objects,
    Properties,
    Values,
    Words,
    besides,
    meet,
    unseen,
)

MOST_ALTERNATIVES = 400
MOST_STEPS = 20_000
_MOST_DIGITS = 400      # of a number, or places that it is moved by
Schema = dict[str, Any] | bool
# Keywords that are read together with the first of them.
_PROPERTIES = ('properties', 'patternProperties', 'additionalProperties')
_ITEMS = ('prefixItems', 'items')
_CONDITION = ('if', 'then', 'else')
_LAST = ('unevaluatedItems', 'unevaluatedProperties')


def load(text: str) -> Any:
    """JSON with exact numbers; raises TooHard."""
    def refuse(word: str) -> None:
        raise TooHard(f'{word} is no JSON')

    try:
        found = json.loads(text, parse_float=_number, parse_int=_number,
                           parse_constant=refuse)
        json.dumps(found, ensure_ascii=False, default=str).encode()
    except json.JSONDecodeError as error:
        raise TooHard(f'the schema is no JSON: {error}') from None
    except UnicodeEncodeError as error:
        raise TooHard(f'the schema holds \\u{ord(error.object[error.start]):x}, which is half of '
                      'a character; the other half has to stand beside it') from None
    return found


def _number(text: str) -> int | Decimal:
    """Raises TooHard for numbers of more digits than anybody means, before they take time."""
    try:
        number = Decimal(text)
    except InvalidOperation:        # an exponent beyond those of Decimal
        number = None
    if number is None or len(text) > _MOST_DIGITS or abs(number.adjusted()) > _MOST_DIGITS:
        cut = text if len(text) <= 40 else f'{text[:40]}...'
        raise TooHard(f'the number {cut} has more than {_MOST_DIGITS} digits')
    return int(text) if text.lstrip('-').isdigit() else number


class Reader:
    """The sets of values of one schema document."""

    def __init__(self, schema: Schema) -> None:
        if not isinstance(schema, dict | bool):
            raise TooHard('the schema must be an object, true or false')
        self._document = Document(schema)
        self._schemas: list[dict[str, Any]] = []
        self._numbers: dict[int, int] = {}              # of schemas, by id
        self._constants: dict[str, dict[str, Any]] = {}
        self._known: dict[tuple[int, bool], list[Values]] = {}
        self._open: set[tuple[int, bool]] = set()
        self._steps = 0
        self.root = self.need(schema)

    def need(self, schema: Schema, positive: bool = True) -> Need:
        """Of a value: that it meets the schema, or that it does not."""
        if isinstance(schema, bool) or not schema:
            return ANYTHING if (schema is not False) == positive else NOTHING
        number = self._numbers.get(id(schema))
        if number is None:
            number = self._numbers[id(schema)] = len(self._schemas)
            self._schemas.append(schema)
            check_keywords(schema)
        return frozenset({(number, positive)})

    def values(self, need: Need) -> list[Values]:
        """What meets a need."""
        found: list[Values] = list(EVERYTHING)
        for number, positive in sorted(need):
            found = self._meet(found, self._one(number, positive))
        return found

    def _one(self, number: int, positive: bool) -> list[Values]:
        if number < 0:
            return []
        key = number, positive
        if key in self._open:
            raise TooHard('a part of it refers to itself without end')
        if key not in self._known:
            self._open.add(key)
            schema = self._schemas[number]
            self._known[key] = self._meant(schema) if positive else self._opposite(schema)
            self._open.discard(key)
        return self._known[key]

    def _of(self, schema: Schema, positive: bool = True) -> list[Values]:
        return self.values(self.need(schema, positive))

    def _meet(self, one: list[Values], other: list[Values]) -> list[Values]:
        self._steps += 1 + len(one) * len(other)
        if self._steps > MOST_STEPS:
            raise TooHard('it takes too many steps to see what it allows; make it simpler')
        found = meet(one, other)
        return self._limited(found)

    def _limited(self, found: list[Values]) -> list[Values]:
        if len(found) > MOST_ALTERNATIVES:
            raise TooHard(f'it has more than {MOST_ALTERNATIVES} alternatives; make it simpler')
        return found

    def _parts(self, schema: dict[str, Any]) -> list[str]:
        """The keywords that say something, each group by its first one, in order."""
        found: list[str] = []
        for keyword in schema:
            for group in (_PROPERTIES, _ITEMS, _CONDITION):
                if keyword in group:
                    keyword = group[0]
            if keyword in ('minContains', 'maxContains') or keyword in _LAST:
                continue
            if keyword in ASSERTIONS and keyword not in found:
                found.append(keyword)
        return found

    def _meant(self, schema: dict[str, Any]) -> list[Values]:
        found: list[Values] = list(EVERYTHING)
        for keyword in self._parts(schema):
            found = self._meet(found, self._keyword(keyword, schema))
        if 'unevaluatedProperties' in schema:
            need = self.need(schema['unevaluatedProperties'])
            found = [after for values in found if (after := with_rest(values, need)) is not None]
        if 'unevaluatedItems' in schema:
            need = self.need(schema['unevaluatedItems'])
            found = [after for values in found if (after := with_tail(values, need)) is not None]
        return found

    def _opposite(self, schema: dict[str, Any]) -> list[Values]:
        found: list[Values] = []
        for keyword in self._parts(schema):
            found += [unseen(values) for values in self._against(keyword, schema)]
        return self._limited(list(dict.fromkeys(found)))

    def _keyword(self, keyword: str, schema: dict[str, Any]) -> list[Values]:
        """The values that meet one keyword, or a group of them."""
        value = schema.get(keyword)
        if (own := assertion(keyword, value)) is not None:
            return [own, *besides(type(own))]
        if keyword == 'type':
            return of_types([value] if isinstance(value, str) else value)
        if keyword in ('enum', 'const'):
            found: list[Values] = []
            for constant in value if keyword == 'enum' else [value]:
                found += map(unseen, self._of(self._constant(constant))) if isinstance(
                    constant, list | dict) else [scalar(constant)]
            return self._limited(gathered(found))
        if keyword == 'properties':
            return [self._properties(schema), *besides(Objects)]
        if keyword == 'prefixItems':
            return [self._items(schema), *besides(Arrays)]
        if keyword == 'contains':
            low, high = int(schema.get('minContains', 1)), most(schema.get('maxContains'))
            part = Contained(self.need(value), low, high)
            return [Arrays(contained=frozenset({part}) if low or high is not None
                           else frozenset()), *besides(Arrays)]
        if keyword == 'propertyNames':
            return [Objects(names=self.need(value)), *besides(Objects)]
        if keyword in ('dependentRequired', 'dependentSchemas'):
            return self._dependent(value)
        if keyword in ('$ref', '$dynamicRef'):
            return self._of(self._target(keyword, schema))
        return self._combined(keyword, value, schema)

    def _combined(self, keyword: str, value: Any, schema: dict[str, Any]) -> list[Values]:
        found: list[Values] = list(EVERYTHING)
        if keyword == 'allOf':
            for part in value:
                found = self._meet(found, self._of(part))
        elif keyword == 'anyOf':
            found = gathered([values for part in value for values in self._of(part)])
        elif keyword == 'oneOf':
            found = []
            for index, part in enumerate(value):
                one = self._of(part)
                for other in value[:index] + value[index + 1:]:
                    one = self._meet(one, self._of(other, False)) if one else one
                found += one
            found = gathered(found)
        elif keyword == 'not':
            found = self._of(value, False)
        else:
            condition = schema.get('if', True)
            found = gathered(
                self._meet(self._of(condition), self._of(schema.get('then', True)))
                + self._meet(self._of(condition, False), self._of(schema.get('else', True)))
            ) if 'if' in schema else found
        return self._limited(found)

    def _dependent(self, value: dict[str, Any]) -> list[Values]:
        found: list[Values] = list(EVERYTHING)
        for name, needed in value.items():
            absent = Objects((Properties(((name, NOTHING),)),))
            if isinstance(needed, list):
                present = [Objects(required=(name, *needed))]
            else:
                present = self._meet([Objects(required=(name,))], self._of(needed))
            found = self._meet(found, [absent, *present, *besides(Objects)])
        return found

    def _properties(self, schema: dict[str, Any]) -> Objects:
        named = schema.get('properties', {})
        patterns = schema.get('patternProperties', {})
        for pattern in patterns:
            pattern_text(pattern)
        others = schema.get('additionalProperties')
        part = Properties(
            tuple((name, self.need(inner)) for name, inner in named.items()),
            tuple((pattern, self.need(inner)) for pattern, inner in patterns.items()),
            ANYTHING if others is None else self.need(others))
        return Objects((part,), seen=frozenset(named), seen_patterns=frozenset(patterns),
                       seen_all=others is not None)

    def _items(self, schema: dict[str, Any]) -> Arrays:
        prefix = tuple(self.need(inner) for inner in schema.get('prefixItems', ()))
        return Arrays(prefix, self.need(schema.get('items', True)), seen=len(prefix),
                      seen_all='items' in schema)

    def _constant(self, value: Any) -> dict[str, Any]:
        """A schema of an array or object and nothing else; the same one for the same value."""
        key = json.dumps(value, default=str)
        if key not in self._constants:
            if isinstance(value, list):
                made = {'type': 'array', 'minItems': len(value), 'maxItems': len(value)}
                if value:
                    made['prefixItems'] = [{'const': item} for item in value]
            else:
                made = {'type': 'object', 'required': list(value), 'additionalProperties': False,
                        'properties': {name: {'const': item} for name, item in value.items()}}
            self._constants[key] = made
        return self._constants[key]

    def _target(self, keyword: str, schema: dict[str, Any]) -> Schema:
        return (self._document.target(schema) if keyword == '$ref'
                else self._document.dynamic_target(schema))

    def _against(self, keyword: str, schema: dict[str, Any]) -> list[Values]:
        """Values that do not meet the keyword: not necessarily all of them."""
        value = schema.get(keyword)
        if keyword in OPPOSITES:
            return OPPOSITES[keyword](value)
        if keyword == 'type':
            names = [value] if isinstance(value, str) else value
            kinds = [type(values) for values in of_types(names)]
            rest = besides(*kinds)
            if 'integer' in names and 'number' not in names:
                rest.append(Numbers('fraction'))
            words = {'null', 'true', 'false'} - {
                word for name in names for word in WORDS.get(name, ())}
            return rest + ([Words(frozenset(words))] if words and Words in kinds else [])
        if keyword in ('enum', 'const'):
            found: list[Values] = list(EVERYTHING)
            for constant in value if keyword == 'enum' else [value]:
                found = self._meet(found, self._of(self._constant(constant), False) if isinstance(
                    constant, list | dict) else without(constant))
            return found
        if keyword == 'properties':
            return [Objects((Properties(((name, self.need(inner, False)),)),), (name,))
                    for name, inner in schema.get('properties', {}).items()
                    if self.need(inner, False) != NOTHING]
        if keyword == 'prefixItems':
            prefix = schema.get('prefixItems', [])
            parts = [*prefix, schema['items']] if 'items' in schema else prefix
            return [Arrays((ANYTHING,) * index + (self.need(part, False),), low=index + 1)
                    for index, part in enumerate(parts) if self.need(part, False) != NOTHING]
        if keyword == 'contains':
            low, high = int(schema.get('minContains', 1)), most(schema.get('maxContains'))
            found = [] if high is None else [
                Arrays(contained=frozenset({Contained(self.need(value), high + 1)}))]
            if low == 1:
                found.append(Arrays(items=self.need(value, False)))
            elif low:
                found.append(Arrays(contained=frozenset({
                    Contained(self.need(value), 0, low - 1)})))
            return found
        if keyword in ('dependentRequired', 'dependentSchemas'):
            return self._against_dependent(value)
        if keyword in ('$ref', '$dynamicRef'):
            return self._of(self._target(keyword, schema), False)
        return self._against_combined(keyword, value, schema)

    def _against_dependent(self, value: dict[str, Any]) -> list[Values]:
        found: list[Values] = []
        for name, needed in value.items():
            if isinstance(needed, list):
                found += [Objects((Properties(((other, NOTHING),)),), (name,))
                          for other in needed]
            else:
                found += self._meet([Objects(required=(name,))], self._of(needed, False))
        return found

    def _against_combined(self, keyword: str, value: Any, schema: dict[str, Any]) -> list[Values]:
        found: list[Values] = []
        if keyword == 'allOf':
            found = [values for part in value for values in self._of(part, False)]
        elif keyword in ('anyOf', 'oneOf'):
            found = list(EVERYTHING)
            for part in value:
                found = self._meet(found, self._of(part, False))
            if keyword == 'oneOf':
                found = found + [values for index, one in enumerate(value)
                                 for other in value[:index]
                                 for values in self._meet(self._of(one), self._of(other))]
        elif keyword == 'not':
            found = self._of(value)
        elif keyword == 'if' and 'if' in schema:
            then, otherwise = schema.get('then', True), schema.get('else', True)
            found = (self._meet(self._of(value), self._of(then, False))
                     + self._meet(self._of(value, False), self._of(otherwise, False)))
        return self._limited(found)
