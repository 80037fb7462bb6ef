"""Values from outside: an error names the field by its path, the value and what would be right."""

from dataclasses import dataclass
import re
from typing import NamedTuple

import pytest

from flash_llm_ros.checked_fields import (
    MOST_YAML_BYTES,
    FieldError,
    check_choice,
    check_integers,
    check_numbers,
    parsed_yaml,
    structured,
    yaml_file,
    yaml_text,
)


class Point(NamedTuple):
    """From a list."""

    name: str
    at: float


@dataclass(frozen=True)
class Part:
    """Checks itself on creation."""

    size: int
    kind: str = 'small'

    def __post_init__(self) -> None:
        check_integers(self, ['size'], least=2, most=9)
        check_choice(self, 'kind', ('small', 'large'))


@dataclass(frozen=True)
class Whole:
    """A field of each sort."""

    parts: tuple[Part, ...]
    shares: dict[str, float]
    points: list[Point]
    rate: float
    on: bool
    spare: Part | None = None

    def __post_init__(self) -> None:
        check_numbers(self, ['rate'], lambda value: value > 0, 'a positive number')


GOOD = {'parts': [{'size': 2}, {'size': 9, 'kind': 'large'}], 'shares': {'a': 1},
        'points': [['p', 0.5]], 'rate': 2, 'on': True}


def test_a_right_mapping_becomes_its_dataclass():
    assert structured(Whole, GOOD | {'spare': None}, 'whole') == Whole(
        (Part(2), Part(9, 'large')), {'a': 1.0}, [Point('p', 0.5)], 2.0, True, None)
    assert structured(Whole, GOOD | {'spare': {'size': 3}}, 'whole').spare == Part(3)


@pytest.mark.parametrize(('change', 'sentence'), [
    ({'parts': 3}, 'whole.parts is 3; it must be a list'),
    ({'parts': [{'size': True}]}, 'whole.parts[0].size is True; it must be an integer'),
    ({'parts': [{'size': 2.0}]}, 'whole.parts[0].size is 2.0; it must be an integer'),
    ({'parts': [{'size': 2}, {'size': 10}]},
     'whole.parts[1].size is 10; it must be an integer of at least 2 and at most 9'),
    ({'parts': [{'size': 2, 'kind': 'odd'}]},
     "whole.parts[0].kind is 'odd'; it must be one of small, large"),
    ({'parts': [{}]}, 'whole.parts[0].size is missing'),
    ({'parts': [['size', 2]]}, "whole.parts[0] is ['size', 2]; it must be a mapping with names"),
    ({'shares': {1: 1.0}}, 'whole.shares is {1: 1.0}; it must be a mapping with names'),
    ({'shares': {'a': float('nan')}}, 'whole.shares.a is nan; it must be a finite number'),
    ({'shares': {'a': 10 ** 400}}, 'whole.shares.a is 1000'),
    ({'shares': {'a': 10 ** 5000}}, 'whole.shares.a is a huge number; it must be a finite number'),
    ({'points': [['p']]}, "whole.points[0] is ['p']; it must be a list of name, at"),
    ({'points': [['p', True]]}, 'whole.points[0].at is True; it must be a finite number'),
    ({'rate': float('inf')}, 'whole.rate is inf; it must be a finite number'),
    ({'rate': 0}, 'whole.rate is 0.0; it must be a positive number'),
    ({'on': 1}, 'whole.on is 1; it must be true or false'),
    ({'spare': {'size': 1}}, 'whole.spare.size is 1; it must be an integer of at least 2'),
    ({'more': 1}, 'whole.more is unknown; known are parts, shares, points, rate, on, spare'),
])
def test_what_is_wrong_is_named(change, sentence):
    with pytest.raises(FieldError, match=re.escape(sentence)):
        structured(Whole, GOOD | change, 'whole')


@pytest.mark.parametrize('text', ['{', 'a: !!python/object:x {}', 'day: 2025-99-99', '- <<: 5'])
def test_no_yaml_is_a_value_error(text):
    with pytest.raises(ValueError, match='it is not valid YAML'):
        parsed_yaml(text)


@pytest.mark.parametrize(('text', 'problem'), [
    ('a: &x 1\nb: *x\n', 'line 1 has an anchor or an alias (& or *)'),
    ('- &x [1, 1]\n- &y [*x, *x]\n', 'line 1 has an anchor'),
    ('a: 1\nb: *x\n', 'line 2 has an anchor or an alias'),
    ('a: &x {b: *x}\n', 'line 1 has an anchor'),
    ('[' * 5000, 'line 1 is nested more than 16 times'),
    ('- ' * 900_000, 'line 1 is nested more than 16 times'),
    ('a: 1\nb: ' + '9' * 5000, 'line 2 has a value of 5000 characters'),
    ('a: ' + '9:' * 400_000 + '9', 'line 1 has a value of 800001 characters'),     # base 60
], ids=lambda text: text[:20])
def test_yaml_that_would_take_more_than_its_text(text, problem):
    with pytest.raises(ValueError, match=re.escape(problem)):
        parsed_yaml(text)


def test_the_longest_yaml(tmp_path):
    file = tmp_path / 'file'
    file.write_bytes(b'-\n' * (MOST_YAML_BYTES // 2))
    assert parsed_yaml(yaml_file(file)) == [None] * (MOST_YAML_BYTES // 2)
    with file.open('ab') as more:
        more.write(b'-')
    with pytest.raises(ValueError, match=f'it is longer than {MOST_YAML_BYTES} bytes'):
        yaml_file(file)


def test_what_is_written_can_be_read():
    data = {'name': '*x & y', 'none': None, 'numbers': [[1, 2.5]] * 3, 'text': 'a\nb' * 99}
    shared = [1, 2]
    assert parsed_yaml(yaml_text(data)) == data
    assert parsed_yaml(yaml_text({'a': shared, 'b': shared})) == {'a': shared, 'b': shared}
