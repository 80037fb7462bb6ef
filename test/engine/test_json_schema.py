"""Schemas as grammars: every answer validates, and what a person would want of one can be said."""

from collections import Counter
from fractions import Fraction
import json
import random
import re

import pytest

from bench.request.robot_commands import drawn, judge, written
from bench.request.schema_suite import SUITE, judged
from bench.request.schema_walk import Walk, compact, invalid
from flash_llm_ros.engine.request.constraint_helper import what_is_wrong
from flash_llm_ros.engine.request.json_schema.numbers import Numbers, TooHard
from flash_llm_ros.engine.request.json_schema.numbers import written as text_of
from flash_llm_ros.engine.request.json_schema.reader import load


@pytest.fixture(scope='module')
def walk() -> Walk:
    return Walk()


def reaches(walk: Walk, schema: object, value: object) -> bool:
    walk.constrain('JSON_SCHEMA', json.dumps(schema))
    return walk.reaches(value if isinstance(value, str) else compact(value))


@pytest.mark.parametrize(('schema', 'right', 'wrong'), [
    # A shorter prefix of a bound's decimals could not be written, and another number came.
    ({'type': 'number', 'minimum': 0, 'maximum': 0.75}, ['0.7', '0.75', '0.750'], ['0.76', '0.8']),
    ({'maximum': 3.14159, 'type': 'number'}, ['3.1', '3', '-7.25'], ['3.1416', '3.2']),
    ({'minimum': -0.95, 'type': 'number'}, ['-0.9', '0'], ['-0.96', '-1']),
    # What would be 1 to whoever reads it as a double.
    ({'minimum': 0, 'exclusiveMaximum': 1, 'type': 'number'}, ['0.999'], ['0.9999999999999999']),
    ({'enum': [1764496379123456768]}, ['1764496379123456768'], ['1764496379123456770']),
    ({'const': 9007199254740993}, ['9007199254740993'], ['9007199254740992']),
    ({'type': 'integer', 'minimum': 1764496379123456789},
     ['1764496379123456789'], ['1764496379123456788']),
    ({'type': 'integer', 'minimum': -2 ** 63, 'maximum': 2 ** 63 - 1},
     [str(-2 ** 63), str(2 ** 63 - 1)], [str(-2 ** 63 - 1), str(2 ** 63)]),
    ({'type': 'integer', 'exclusiveMinimum': 2 ** 53}, [str(2 ** 53 + 1)], [str(2 ** 53)]),
    # The range of a type, as code generators write it.
    ({'type': 'number', 'minimum': -3.4028234663852886e38, 'maximum': 3.4028234663852886e38},
     ['0.25', '-3', '0.000001'], ['1e39', '-1e300', '1' + '0' * 39]),
    ({'type': 'number', 'minimum': 0, 'maximum': 1.7976931348623157e308},
     ['0.25', '100000'], ['-0.25', '1e309']),
    # A far bound took the digits behind the point of all numbers.
    ({'type': 'number', 'minimum': 0, 'maximum': 2 ** 63 - 1},
     ['0.25', '0.000000001', str(2 ** 63 - 1)], ['-0.1', str(2 ** 63)]),
    ({'type': 'number', 'exclusiveMinimum': -1e18, 'exclusiveMaximum': 1e18},
     ['-0.25', '123456.789'], ['1' + '0' * 18, '999999999999999999', '-999999999999999999.9']),
    ({'type': 'number', 'minimum': 5e-324, 'maximum': 1}, ['0.25', '0.000000001', '1'], ['0']),
    ({'type': 'number', 'minimum': 1e32, 'maximum': 1e40}, ['5' + '0' * 32], ['0.25', '1']),
    ({'properties': {'a1': {'type': 'integer'}}, 'type': 'object',
      'patternProperties': {'^a': {'maximum': 3}}, 'additionalProperties': False},
     ['{"a1":2}', '{"a2":2.5}', '{"a1":3,"ab":-1}'], ['{"a1":4}', '{"a1":2.5}', '{"b":1}']),
    ({'type': 'string', 'pattern': r'^\d\w$'}, ['"1a"'], ['"١a"', '"1é"']),
    ({'type': 'string', 'pattern': r'^\D\S$'}, ['"é1"'], ['"1a"', '"a "', '"a\u00a0"']),
    # A maximum to which no answer comes is none.
    ({'type': 'string', 'maxLength': 2 ** 63 - 1}, ['"a"'], ['1']),
    ({'type': 'array', 'maxItems': 2 ** 31}, ['[1]', '[]'], ['1']),
    # What no dialect of patterns matches; Python's $ stands before a last end of line, too.
    ({'type': 'string', 'not': {'pattern': '^a$'}}, ['"b"', '"aa"'], ['"a"', '"a\\n"']),
    ({'type': 'string', 'not': {'pattern': '^.$'}}, ['"ab"', '"\\n"'], ['"\\r"', '"\u2028"']),
    ({'type': 'object', 'patternProperties': {r'^\S$': {'type': 'object'}},
      'additionalProperties': {'type': 'integer'}},
     ['{" ":1}', '{"a":{}}'], ['{"\ufeff":1}', '{"\x85":1}', '{" ":{}}']),
    # An enumeration has looked at no item.
    ({'enum': [[1], {'a': 1}, [], 2], 'unevaluatedItems': False, 'unevaluatedProperties': False},
     ['[]', '2'], ['[1]', '{"a":1}']),
    ({'type': 'integer', 'multipleOf': 7, 'minimum': -0.5}, ['0', '7'], ['-7', '1']),
    # A name that comes twice is one property.
    ({'type': 'object', 'minProperties': 2}, [], ['{"a":1,"a":2}']),
])
def test_what_was_wrong(walk: Walk, schema: object, right: list[str], wrong: list[str]) -> None:
    if not right:
        with pytest.raises(ValueError, match='no answer'):
            reaches(walk, schema, wrong[0])
        return
    for text in right:
        assert reaches(walk, schema, text) and not invalid('JSON_SCHEMA', json.dumps(schema), text)
    for text in wrong:
        assert not reaches(walk, schema, text), text


@pytest.mark.parametrize(('schema', 'right', 'wrong'), [
    ({'oneOf': [{'multipleOf': 10}, {'multipleOf': 4}]}, '8 30 -10', '20 7 0 "a"'),
    ({'type': 'integer', 'minimum': 0, 'maximum': 100,
      'oneOf': [{'multipleOf': 3}, {'multipleOf': 7}]}, '3 7 99', '21 0 8'),
    ({'type': 'number', 'minimum': 0, 'maximum': 1, 'not': {'multipleOf': 0.1}},
     '0.25 0.01', '0.2 0.20 1 1.0 0'),
    ({'oneOf': [{'type': 'number', 'multipleOf': 0.5}, {'multipleOf': 2}]},
     '1 1.5 -0.5', '2 4 0.25 6.0'),
])
def test_no_multiples(walk: Walk, schema: object, right: str, wrong: str) -> None:
    for text in right.split():
        assert reaches(walk, schema, text) and not what_is_wrong(json.dumps(schema), text), text
    for text in wrong.split():
        assert not reaches(walk, schema, text) and what_is_wrong(json.dumps(schema), text), text


@pytest.mark.parametrize('keyword', [
    'minLength', 'maxLength', 'minItems', 'maxItems', 'minProperties', 'maxProperties',
    'minContains', 'maxContains', 'minimum', 'maximum', 'exclusiveMinimum', 'exclusiveMaximum',
    'multipleOf', 'const', 'default'])
@pytest.mark.parametrize('number', ['1e9999999', '-1e-9999999', '1e' + '9' * 30, '9' * 5000])
def test_numbers_that_would_take_long_are_refused(keyword: str, number: str) -> None:
    for schema in (f'{{"{keyword}": {number}}}', f'{{"not": {{"enum": [[{number}]]}}}}'):
        with pytest.raises(TooHard, match=r'the number -?[19][e9].* has more than 400 digits$'):
            load(schema)


@pytest.mark.parametrize(('schema', 'reason'), [
    ('{"minLength": 1e99}', 'minLength is .* 0 to 100000'),
    ('{"type": "array", "minItems": 2147483648}', 'minItems is .* 0 to 100000'),
    ('{"not": {"maxLength": 1e99}}', 'no answer'),
    (r'{"properties": {"a": {"const": "\ud83d"}}}', r'schema holds \\ud83d, which is half of'),
    (r'{"type": "object", "required": ["\udc00"]}', r'schema holds \\udc00'),
    ('{"oneOf": [{"multipleOf": 3}, {"multipleOf": 5}]}', 'minimum and maximum closer'),
    ('{"multipleOf": 1e-300}', 'minimum and maximum closer'),
    ('{"$id": "http://[", "$ref": "#"}', r"\$id is 'http://\[', which is no URI"),
    (f'{{"pattern": "a{{{"1" * 5000}}}"}}', 'is not understood'),
    # Each keyword alone has answers; llguidance ends what matches nothing.
    ('{"type": "string", "format": "date", "maxLength": 2}', 'no answer'),
    ('{"type": "string", "pattern": "^(?:a|)$", "minLength": 4}', 'no answer'),
    ('{"anyOf": [{"$ref": "#"}, {"type": "null"}]}', 'refers to itself'),
    ('{"$defs": {"a": {"$id": [1]}}}', r'\$id is .* must be a text'),
    ('{"type": "integer", "multipleOf": 3, "maximum": -0.5}', 'minimum and maximum closer'),
    ('{"multipleOf": 0.07}', 'minimum and maximum closer'),
    (json.dumps({'uniqueItems': True, 'type': 'array', 'items': {'enum': [*range(64)]}}),
     'at most 63'),
    (json.dumps({'uniqueItems': True, 'type': 'array', 'minItems': 2, 'items': False,
                 'prefixItems': [{'enum': [1, 2]}, {'const': 1}]}), 'no value left'),
    ('{"type": "array", "items": {"const": 1}, "minItems": 90000}', 'Too many items'),
])
def test_why_a_schema_is_refused(walk: Walk, schema: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        walk.constrain('JSON_SCHEMA', schema)


def test_classes_of_characters_are_ascii_in_expressions(walk: Walk) -> None:
    for expression, right, wrong in ((r'\d+', '12', '١٢'), (r'[\w-]', 'a', 'é'),
                                     (r'[^\d]', 'é', '1'), (r'\\d', r'\d', '1')):
        walk.constrain('REGEX', expression)
        assert walk.reaches(right) and not walk.reaches(wrong), expression


def test_schemas_within_a_grammar(walk: Walk) -> None:
    walk.constrain('GRAMMAR', 'start: "a " speed | "b " %json {"enum": [9007199254740993]}\n'
                              'speed: %json {"type": "number", "minimum": 0, "maximum": 0.75}')
    assert walk.reaches('a 0.7') and walk.reaches('b 9007199254740993')
    assert not walk.reaches('a 0.76') and not walk.reaches('b 9007199254740992')


def test_numbers_are_those_between_the_bounds() -> None:
    """Against the comparison of exact fractions."""
    chance = random.Random(3)
    for _ in range(300):
        low, high = sorted(Fraction(chance.randint(-500, 500)) / 10 ** chance.randint(0, 4)
                           for _ in range(2))
        numbers = Numbers(low=low, high=high, low_open=chance.random() < 0.5,
                          high_open=chance.random() < 0.5).both(
            Numbers(chance.choice(('any', 'integer', 'fraction'))))
        if numbers is None:
            continue
        terms, _ = numbers.terms()
        for step in range(-2, 13):
            number = low + (high - low) * step / 10
            text = text_of(number)
            found = bool(terms) and all(re.fullmatch(term, text) for term in terms)
            assert found == (number in numbers), (numbers, text)


@pytest.mark.timeout(60)
def test_commands_of_robots(walk: Walk) -> None:
    """`python -m bench.request.robot_commands` has them all; these are some."""
    for kind, text, wanted in [*list(written())[::3], *drawn(60)]:
        assert judge(walk, kind, text, wanted, 1) == []


@pytest.mark.timeout(120)
def test_the_official_suite(walk: Walk) -> None:
    paths = sorted(SUITE.glob('*.json'))
    if not paths:
        pytest.skip(f'no JSON Schema test suite in {SUITE}; set JSON_SCHEMA_TEST_SUITE')
    counts = sum((judged(path, walk)[0] for path in paths), Counter())
    assert counts['accepted'] == 0
    assert counts['taken'] >= 322 and counts['reachable'] >= 605


def test_the_judge_finds_what_is_wrong() -> None:
    assert what_is_wrong('{"type": "integer"}', '1e40') == ''
    assert invalid('JSON_SCHEMA', '{"maximum": 0.75}', '0.76')
    assert invalid('JSON_SCHEMA', '{"exclusiveMaximum": 1}', '0.99999999999999999999')
    assert invalid('REGEX', r'\d', '١') and not invalid('REGEX', r'\d', '1')
