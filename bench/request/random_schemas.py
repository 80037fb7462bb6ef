"""Random JSON schemas and prompts, the same for the same number; every schema has answers."""

from collections.abc import Callable
import random
from typing import Any

Schema = dict[str, Any]
WORDS = ('robot', 'arm', 'battery', 'door', 'left', 'right', 'speed', 'goal', 'map', 'camera',
         'table', 'cup', 'kitchen', 'charge', 'wait', 'mission', 'größe', '距離', 'a "b"', 'x\\y')
PATTERNS = ('^[A-Z]{2}-[0-9]{3}$', '^(on|off|auto)$', '^[a-z]+_[a-z]+$', '^#[0-9a-f]{6}$')
FORMATS = ('date', 'time', 'ipv4', 'uuid')
ASKED = ('Tell me about the {} and the {}.', 'Where is the {} when the {} is open?',
         'Describe the {} of a {}.', 'Plan: bring the {} to the {}!')
_DEPTH = 3


def random_case(number: int) -> tuple[Schema, str]:
    """A schema and a prompt."""
    chance = random.Random(number)
    prompt = chance.choice(ASKED).format(*chance.sample(WORDS[:16], 2))
    return _Maker(chance).root(), prompt


class _Maker:
    def __init__(self, chance: random.Random) -> None:
        self._chance = chance
        self._definitions: dict[str, Schema] = {}

    def root(self) -> Schema:
        schema = self._chance.choice((self._object, self._object, self._array, self._any))(0)
        if self._definitions:
            schema = {**schema, '$defs': self._definitions}
        return schema

    def _any(self, depth: int) -> Schema:
        leaves: list[Callable[[int], Schema]] = [
            self._string, self._integer, self._number, self._enum, self._const, self._simple]
        nests = [self._object, self._array, self._tuple, self._union, self._reference]
        return self._chance.choice(leaves if depth >= _DEPTH else leaves + nests)(depth)

    def _object(self, depth: int) -> Schema:
        names = self._chance.sample(WORDS, self._chance.randint(1, 4))
        required = [name for name in names if self._chance.random() < 0.7]
        return {'type': 'object', 'properties': {name: self._any(depth + 1) for name in names},
                'required': required, 'additionalProperties': False}

    def _array(self, depth: int) -> Schema:
        least = self._chance.randint(0, 2)
        return {'type': 'array', 'items': self._any(depth + 1), 'minItems': least,
                'maxItems': least + self._chance.randint(0, 2)}

    def _tuple(self, depth: int) -> Schema:
        parts = [self._any(depth + 1) for _ in range(self._chance.randint(1, 3))]
        return {'type': 'array', 'prefixItems': parts, 'items': False, 'minItems': len(parts)}

    def _union(self, depth: int) -> Schema:
        return {'anyOf': [self._any(depth + 1) for _ in range(self._chance.randint(2, 3))]}

    def _reference(self, depth: int) -> Schema:
        name = f'part{len(self._definitions)}'
        self._definitions[name] = {}        # keeps the name
        self._definitions[name] = self._any(depth + 1)
        return {'$ref': f'#/$defs/{name}'}

    def _string(self, depth: int) -> Schema:
        kind = self._chance.randrange(4)
        if kind == 0:
            return {'type': 'string', 'pattern': self._chance.choice(PATTERNS), 'maxLength': 16}
        if kind == 1:
            return {'type': 'string', 'format': self._chance.choice(FORMATS)}
        least = self._chance.randint(0, 4)
        return {'type': 'string', 'minLength': least,
                'maxLength': least + self._chance.randint(0, 12)}

    def _integer(self, depth: int) -> Schema:
        low = self._chance.randint(-1000, 1000)
        schema = {'type': 'integer', 'minimum': low,
                  'maximum': low + self._chance.randint(20, 5000)}
        if self._chance.random() < 0.3:
            schema['multipleOf'] = self._chance.choice((2, 5, 7, 15))
        return schema

    def _number(self, depth: int) -> Schema:
        low = self._chance.uniform(-10, 10)
        schema = {'type': 'number', 'minimum': round(low, 2),
                  'exclusiveMaximum': round(low + self._chance.uniform(2, 20), 2)}
        if self._chance.random() < 0.5:
            schema['multipleOf'] = self._chance.choice((0.5, 0.25, 0.125))   # exact in binary
        return schema

    def _enum(self, depth: int) -> Schema:
        values: list[Any] = [*self._chance.sample(WORDS, 3), None, True, 0, -2.5, [1, 'two'],
                             {'three': 4}]
        return {'enum': self._chance.sample(values, self._chance.randint(1, 4))}

    def _const(self, depth: int) -> Schema:
        return {'const': self._chance.choice(WORDS)}

    def _simple(self, depth: int) -> Schema:
        return {'type': self._chance.choice(('boolean', 'null', ['boolean', 'null']))}
