"""Values from outside (YAML, JSON, parameters), checked: an error names the field that is wrong."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import MISSING, fields, is_dataclass
import math
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints, is_typeddict

import yaml

# A manifest takes some 300 bytes a layer and section, 800 with predictors: this is 1,000 layers.
MOST_YAML_BYTES = 1 << 20
_MOST_DEPTH = 16
_MOST_CHARACTERS = 4096     # of a value: what digits and dates cost is more than linear in them
_YAML_LOADER = getattr(yaml, 'CSafeLoader', yaml.SafeLoader)


class FieldError(ValueError):
    """`field` is wrong; `problem` says what it is and what would be right."""

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f'{field} {problem}')
        self.field, self.problem = field, problem


def check(right: bool, field: str, value: object, wanted: str) -> None:
    """FieldError unless `right`: `field` is `value`, and must be `wanted`."""
    if not right:
        raise FieldError(field, f'is {_shown(value)}; it must be {wanted}')


def check_integers(owner: object, names: Iterable[str], least: int = 1,
                   most: int | None = None) -> None:
    """Attributes of `owner` are integers, which booleans are not, from `least` to `most`."""
    span = f'an integer of at least {least}' + ('' if most is None else f' and at most {most}')
    for name in names:
        value = getattr(owner, name)
        check(_is_integer(value) and value >= least and (most is None or value <= most),
              name, value, span)


def check_numbers(owner: object, names: Iterable[str], within: Callable[[float], bool],
                  wanted: str) -> None:
    """Attributes of `owner` are finite numbers that `within` is true of; `wanted` says which."""
    for name in names:
        value = getattr(owner, name)
        check(_is_number(value) and within(value), name, value, wanted)


def check_choice(owner: object, name: str, known: Iterable[str]) -> None:
    value, known = getattr(owner, name), tuple(known)
    check(isinstance(value, str) and value in known, name, value, f'one of {", ".join(known)}')


def yaml_file(path: Path) -> str:
    """The text of a file that `parsed_yaml` takes; OSError, ValueError for a longer one."""
    with path.open('rb') as file:
        content = file.read(MOST_YAML_BYTES + 1)
    if len(content) > MOST_YAML_BYTES:
        raise ValueError(f'it is longer than {MOST_YAML_BYTES} bytes')
    try:
        return content.decode()
    except UnicodeDecodeError:
        raise ValueError('it is not UTF-8') from None


def parsed_yaml(text: str) -> Any:
    """Raises ValueError where it is no YAML of plain values, each written out.

    Time and memory are bounded by the text: no aliases, which stand for values as often as they
    like, no deep nesting and no long numbers.
    """
    try:
        problem = _problem(yaml.parse(text, Loader=_YAML_LOADER))
        if problem is None:
            return yaml.load(text, Loader=_YAML_LOADER)     # a safe one
    except (yaml.YAMLError, ValueError, RecursionError):
        problem = 'it is not valid YAML'
    raise ValueError(problem)


def _problem(events: Iterator[yaml.Event]) -> str | None:
    """What is not to be parsed any further; it ends where that begins."""
    depth = 0
    for event in events:
        line = f'line {event.start_mark.line + 1}'
        if getattr(event, 'anchor', None) is not None:
            return f'{line} has an anchor or an alias (& or *); every value must be written out'
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        if depth > _MOST_DEPTH:
            return f'{line} is nested more than {_MOST_DEPTH} times'
        if isinstance(event, yaml.ScalarEvent) and len(event.value) > _MOST_CHARACTERS:
            return (f'{line} has a value of {len(event.value)} characters; {_MOST_CHARACTERS} are '
                    'the most')
    return None


class _PlainDumper(yaml.SafeDumper):
    """Writes a value out wherever it is."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def yaml_text(data: Any) -> str:
    """Plain values as YAML, in their order; short lists are on one line."""
    return yaml.dump(data, Dumper=_PlainDumper, sort_keys=False, default_flow_style=None, width=100)


def structured(kind: Any, data: Any, field: str = '') -> Any:
    """`data`, as YAML or JSON gives it, as an object of type `kind`.

    `kind` is a dataclass (from a mapping; what it checks on creation is checked), a TypedDict, a
    NamedTuple (from a list), int, float (finite), str, bool, a list, tuple, dict or optional of
    such, or a class that makes itself by `from_plain(data)`. Raises FieldError with the whole path
    of what is wrong, as in `model.attention.heads`, below `field`.
    """
    origin, arguments = get_origin(kind), get_args(kind)
    if kind is Any:
        return data
    if origin in (Union, UnionType):
        inner = next(argument for argument in arguments if argument is not NoneType)
        return None if data is None else structured(inner, data, field)
    if origin is dict:
        _check_mapping(data, field)
        return {key: structured(arguments[1], value, _path(field, key))
                for key, value in data.items()}
    if origin in (list, tuple):
        check(isinstance(data, list), field, data, 'a list')
        return origin(structured(arguments[0], value, f'{field}[{index}]')
                      for index, value in enumerate(data))
    if hasattr(kind, 'from_plain'):
        return _made(kind.from_plain, {'data': data}, field)
    if is_dataclass(kind) or is_typeddict(kind):
        return _record(kind, data, field)
    if issubclass(kind, tuple):
        names = kind._fields
        check(isinstance(data, list) and len(data) == len(names), field, data,
              f'a list of {", ".join(names)}')
        return _record(kind, dict(zip(names, data, strict=True)), field)
    right, wanted = _PLAIN[kind]
    check(right(data), field, data, wanted)
    return kind(data)


def _record(kind: Any, data: Any, field: str) -> Any:
    _check_mapping(data, field)
    hints = get_type_hints(kind)
    optional = ({one.name for one in fields(kind)
                 if one.default is not MISSING or one.default_factory is not MISSING}
                if is_dataclass(kind) else set())
    for name in data:
        if name not in hints:
            raise FieldError(_path(field, name), f'is unknown; known are {", ".join(hints)}')
    for name in hints:
        if name not in data and name not in optional:
            raise FieldError(_path(field, name), 'is missing')
    return _made(kind, {name: structured(hints[name], value, _path(field, name))
                        for name, value in data.items()}, field)


def _made(make: Callable[..., Any], values: dict[str, Any], field: str) -> Any:
    try:
        return make(**values)
    except FieldError as error:
        raise FieldError(_path(field, error.field), error.problem) from None


def _path(field: str, name: str) -> str:
    return f'{field}.{name}' if field else name


def _check_mapping(data: Any, field: str) -> None:
    check(isinstance(data, dict) and all(isinstance(name, str) for name in data),
          field or 'the content', data, 'a mapping with names')


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    try:
        return (_is_integer(value) or isinstance(value, float)) and math.isfinite(value)
    except OverflowError:       # an integer that no float holds
        return False


def _shown(value: object) -> str:
    try:
        text = repr(value)
    except ValueError:          # an integer of thousands of digits
        text = 'a huge number'
    return text if len(text) <= 80 else f'{text[:77]}...'


_PLAIN: dict[type, tuple[Callable[[Any], bool], str]] = {
    bool: (lambda value: isinstance(value, bool), 'true or false'),
    int: (_is_integer, 'an integer'),
    float: (_is_number, 'a finite number'),
    str: (lambda value: isinstance(value, str), 'a text'),
}
