"""Constraints made to take time or memory."""

from collections.abc import Callable
import json

from flash_llm_ros.engine.request.constraint import Constraint, ConstraintKind

JSON, REGEX, CHOICES, GRAMMAR = ConstraintKind


def schema(content: object) -> Callable[[], Constraint]:
    return lambda: Constraint(JSON, json.dumps(content))


def text(kind: ConstraintKind, content: str) -> Callable[[], Constraint]:
    return lambda: Constraint(kind, content)


def deep_object(depth: int) -> dict[str, object]:
    inner: dict[str, object] = {'type': 'string'}
    for _ in range(depth):
        inner = {'type': 'object', 'properties': {'a': inner}, 'required': ['a']}
    return inner


def doubled(first: str, name: str) -> str:
    """A grammar whose only answer has 2^40 characters."""
    return '\n'.join([f'start: {name}0', *(f'{name}{i}: {name}{i + 1} {name}{i + 1}'
                                           for i in range(40)), f'{name}40: "{first}"'])


def chained(rules: int) -> str:
    """A grammar of so many rules, each of which calls the next."""
    return '\n'.join(['start: a0', *(f'a{i}: "x" a{i + 1}' for i in range(rules)),
                      f'a{rules}: "y"'])


def periods(lengths: tuple[int, ...]) -> str:
    """A grammar of texts whose length is a multiple of all of these, which is far away."""
    return 'start: A\nA: ' + ' & '.join(f'/(.{{{length}}})*/' for length in lengths)


HOSTILE: dict[str, Callable[[], Constraint]] = {
    'deep schema': schema(deep_object(40)),
    'many properties': schema({'type': 'object', 'properties': {
        f'p{i}': {'type': 'string', 'maxLength': i} for i in range(1000)}}),
    'many required': schema({'type': 'object', 'required': [f'k{i}' for i in range(2000)]}),
    'many alternatives': schema({'allOf': [{'anyOf': [
        {'type': 'object', 'properties': {f'k{i}_{j}': {'type': 'integer'}}} for j in range(6)]}
        for i in range(8)]}),
    'large enum': schema({'enum': [f'{i:05d}' * 3 for i in range(3000)]}),
    'long string': schema({'type': 'string', 'maxLength': 10 ** 7}),
    'long arrays': schema({'type': 'array', 'minItems': 1000, 'items': {
        'type': 'array', 'minItems': 1000, 'items': {'type': 'string', 'minLength': 1000}}}),
    'divisible': schema({'type': 'integer', 'multipleOf': 9973}),
    'pattern': schema({'type': 'string', 'pattern': '^(a|b)*a(a|b){20}$'}),
    'itself': schema({'$ref': '#'}),
    'exponential states': text(REGEX, '(a|b)*a(a|b){20}'),
    'nested repeats': text(REGEX, '(.*a){30}'),
    'forced repeats': text(REGEX, '((((a{100}){100}){100}){100}){100}'),
    'optional repeats': text(REGEX, '(a?){200}' * 300),
    'alternatives': text(REGEX, '|'.join(f'.{{0,{i}}}x{i}' for i in range(300))),
    'letters of all scripts': text(REGEX, r'\p{L}{0,500}\w{0,500}\d{0,5000}'),
    'deep brackets': text(REGEX, '(' * 200 + 'a' + ')' * 200),
    'left recursion': text(GRAMMAR, 'start: start start | "a" | ""'),
    'ambiguous': text(GRAMMAR, 'start: x\nx: x y | y\ny: "a" x? "b"?'),
    'repeated rules': text(GRAMMAR, 'start: x{1,1000}\nx: y{1,1000}\ny: z{1,1000}\nz: "a"|"b"'),
    'doubling rules': text(GRAMMAR, doubled('x', 'a')),
    'doubling tokens': text(GRAMMAR, doubled('x', 'A')),
    'intersections': text(GRAMMAR, 'start: A\nA: ' + ' & '.join(
        f'/[a-z]*[{letter}][a-z]*/' for letter in 'abcdefghijklmnopqrst')),
    'complement': text(GRAMMAR, 'start: A\nA: ~/(.*a.{12})/'),
    'substrings': text(GRAMMAR, 'start: A\nA: %regex {"substring_words": "'
                       + ' '.join(f'w{i % 97}' for i in range(12_000)) + '"}'),
    # These two the library's own limits do not bound: a stack overflow, and no end.
    'rules in a chain': text(GRAMMAR, chained(2500)),
    'periods': text(GRAMMAR, periods((97, 101, 103, 107, 109, 113))),
    'patterns with periods': schema({'allOf': [
        {'type': 'string', 'pattern': f'(.{{{i}}})*x'} for i in range(90, 140)]}),
    'all choices': lambda: Constraint(CHOICES, choices=tuple(
        f'{i:05d}' * 6 for i in range(2000))),
}
