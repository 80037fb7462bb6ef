"""Random schemas and expressions of robots' commands, each with an answer that is wanted of it."""

from decimal import Decimal
import random
from typing import Any

Case = tuple[Any, Any]      # a schema, or an expression's text; and a wanted value
ACTIONS = ('move', 'turn', 'stop', 'dock', 'grasp', 'say', 'wait', 'größer', 'a "b"')
JOINTS = tuple(f'joint_{number}' for number in range(1, 8))
FRAMES = ('map', 'odom', 'base_link', 'camera/color')


def random_command(number: int) -> Case:
    """The same one for the same number."""
    chance = random.Random(f'command {number}')
    if number % 10 == 9:
        return _expression(chance)
    return chance.choice((_command, _command, _pose, _joints, _route, _alternatives, _condition))(
        chance)


def _decimal(chance: random.Random, low: float, high: float, most_digits: int = 4) -> float:
    return float(round(Decimal(chance.uniform(low, high)), chance.randint(0, most_digits)))


def _number(chance: random.Random) -> Case:
    low = _decimal(chance, -10, 3)
    high = float(Decimal(str(low)) + Decimal(str(abs(_decimal(chance, 0.1, 20)) or 0.5)))
    schema: dict[str, Any] = {'type': 'number'}
    wanted = chance.choice((low, high, _between(chance, low, high)))
    if chance.random() < 0.9:
        schema['minimum' if wanted == low or chance.random() < 0.7 else 'exclusiveMinimum'] = low
    if chance.random() < 0.9:
        schema['maximum' if wanted == high or chance.random() < 0.7 else 'exclusiveMaximum'] = high
    if chance.random() < 0.25:
        step = chance.choice(('0.5', '0.1', '0.25', '0.05', '0.01', '1', '2'))
        first = -(-Decimal(str(low)) // Decimal(step))
        count = Decimal(str(high)) // Decimal(step) - first
        if count > 2:
            # Not the ends, which may be open.
            at = (first + chance.randint(1, int(count) - 1)) * Decimal(step)
            return {**schema, 'multipleOf': float(step)}, float(at) if at % 1 else int(at)
    return schema, int(wanted) if wanted == int(wanted) else wanted


def _between(chance: random.Random, low: float, high: float) -> float:
    """A number of few digits, strictly between."""
    for digits in range(1, 8):
        found = float(round(Decimal(chance.uniform(low, high)), digits))
        if low < found < high:
            return found
    return low


def _integer(chance: random.Random) -> Case:
    bits = chance.choice((7, 8, 15, 16, 31, 32, 63, 64))
    low, high = (0, 2 ** bits - 1) if bits % 8 == 0 else (-2 ** bits, 2 ** bits - 1)
    if chance.random() < 0.5:
        low, high = sorted(chance.randint(low, high) for _ in range(2))
    return {'type': 'integer', 'minimum': low, 'maximum': high}, chance.choice(
        (low, high, chance.randint(low, high)))


def _stamp(chance: random.Random) -> Case:
    now = 1_764_496_379_000_000_000 + chance.randrange(10 ** 12)
    if chance.random() < 0.3:
        values = [now + chance.randrange(1000) for _ in range(3)]
        return {'enum': values}, chance.choice(values)
    return {'type': 'integer', 'minimum': now, 'maximum': now + 10 ** 9}, chance.choice(
        (now, now + chance.randrange(10 ** 9)))


def _word(chance: random.Random) -> Case:
    kind = chance.randrange(4)
    if kind == 0:
        words = chance.sample(ACTIONS, chance.randint(1, 5))
        return {'enum': [*words, *chance.sample((None, 1, 0.5, True), 1)]}, chance.choice(words)
    if kind == 1:
        return {'type': 'string', 'pattern': r'^[a-z]+_\d{1,3}$'}, f'dock_{chance.randrange(999)}'
    if kind == 2:
        return {'type': 'string', 'minLength': 1, 'maxLength': 16}, chance.choice(ACTIONS)
    return {'type': ['boolean', 'null']}, chance.choice((True, False, None))


def _leaf(chance: random.Random) -> Case:
    return chance.choice((_number, _number, _integer, _stamp, _word))(chance)


def _object(chance: random.Random, fields: dict[str, Case], optional: float = 0.3) -> Case:
    required = [name for name in fields if chance.random() >= optional]
    schema = {'type': 'object', 'properties': {name: case[0] for name, case in fields.items()},
              'required': required, 'additionalProperties': False}
    return schema, {name: case[1] for name, case in fields.items()
                    if name in required or chance.random() < 0.5}


def _array(chance: random.Random, cases: list[Case]) -> Case:
    """Of one item's schema, or of one schema for each item."""
    if chance.random() < 0.5:
        return {'type': 'array', 'prefixItems': [case[0] for case in cases], 'items': False,
                'minItems': len(cases)}, [case[1] for case in cases]
    count = chance.randint(0, 3)
    least = chance.randint(0, count)
    return {'type': 'array', 'items': cases[0][0], 'minItems': least,
            'maxItems': count + chance.randint(0, 2)}, [cases[0][1]] * count


def _command(chance: random.Random) -> Case:
    fields: dict[str, Case] = {'action': _word(chance)}
    for name in chance.sample(('speed', 'seconds', 'target', 'id', 'stamp', 'max "x"'), 3):
        fields[name] = _leaf(chance)
    if chance.random() < 0.4:
        fields['list'] = _array(chance, [_leaf(chance) for _ in range(3)])
    return _object(chance, fields)


def _pose(chance: random.Random) -> Case:
    position = _object(chance, {axis: _number(chance) for axis in 'xyz'}, 0)
    turn = _array(chance, [_number(chance) for _ in range(4)])
    fields = {'frame_id': ({'enum': list(FRAMES)}, chance.choice(FRAMES)), 'stamp': _stamp(chance),
              'position': position, 'orientation': turn}
    return _object(chance, fields)


def _joints(chance: random.Random) -> Case:
    schema, value = _number(chance)
    names = chance.sample(JOINTS, chance.randint(1, 4))
    if chance.random() < 0.5:
        return {'type': 'object', 'patternProperties': {r'^joint_\d$': schema},
                'additionalProperties': False}, dict.fromkeys(names, value)
    return {'type': 'object', 'properties': {
        'names': {'type': 'array', 'items': {'enum': list(JOINTS)}, 'uniqueItems': True,
                  'minItems': 1},
        'positions': {'type': 'array', 'items': schema, 'maxItems': 7}},
        'required': ['names', 'positions'], 'additionalProperties': False}, {
            'names': names, 'positions': [value] * len(names)}


def _route(chance: random.Random) -> Case:
    points = [_array(chance, [_number(chance), _number(chance)]) for _ in range(2)]
    return _array(chance, points)


def _alternatives(chance: random.Random) -> Case:
    cases = []
    for name in chance.sample(ACTIONS, 3):
        schema, value = _object(chance, {name: _leaf(chance)}, 0)
        schema['properties'] = {'kind': {'const': name}, **schema['properties']}
        schema['required'] = ['kind', *schema['required']]
        cases.append((schema, {'kind': name, **value}))
    return {chance.choice(('oneOf', 'anyOf')): [case[0] for case in cases]}, chance.choice(
        cases)[1]


def _condition(chance: random.Random) -> Case:
    """A slow mode has another limit, a stop no speed."""
    high = abs(_decimal(chance, 0.2, 3)) or 0.75
    low = float(round(Decimal(high) / 3, 3))
    schema = {'type': 'object', 'properties': {
        'mode': {'enum': ['slow', 'fast', 'stop']},
        'speed': {'type': 'number', 'minimum': 0, 'maximum': high}}, 'required': ['mode'],
        'additionalProperties': False, 'allOf': [
            {'if': {'properties': {'mode': {'const': 'slow'}}},
             'then': {'properties': {'speed': {'maximum': low}}}},
            {'if': {'properties': {'mode': {'const': 'stop'}}},
             'then': {'properties': {'speed': False}}, 'else': {'required': ['speed']}}]}
    return schema, chance.choice((
        {'mode': 'slow', 'speed': low}, {'mode': 'fast', 'speed': high}, {'mode': 'stop'}))


def _expression(chance: random.Random) -> Case:
    words = chance.sample(('left', 'right', 'go', 'dock', 'Tür', 'cup'), 3)
    kind = chance.randrange(4)
    if kind == 0:
        return f'({"|".join(words)})( \\d{{1,3}})?', f'{words[0]} {chance.randrange(1000)}'
    if kind == 1:
        count = chance.randint(1, 4)
        return (f'({"|".join(words)})(,({"|".join(words)})){{0,{count}}}',
                ','.join(chance.choice(words) for _ in range(count)))
    if kind == 2:
        digits = chance.randint(1, 19)
        return rf'[a-z]+=-?\d{{1,{digits}}}', f'x=-{chance.randrange(10 ** digits)}'
    return r'\w+\s[^\d\s]{1,9}!?', f'{chance.choice(("go", "turn_2"))} {words[1]}!'
