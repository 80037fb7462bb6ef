"""A ROS interface as a JSON schema: the engine knows no ROS."""

import importlib
from importlib.util import find_spec
import json
from pathlib import Path
import re
from typing import Any

from rosidl_parser.definition import (
    AbstractGenericString,
    AbstractNestedType,
    AbstractSequence,
    AbstractString,
    Array,
    BasicType,
    BoundedSequence,
    NamespacedType,
)

from flash_llm_ros.store.errors import ErrorCode, FlashLlmError

_NAME = re.compile(r'([a-z][a-z0-9_]*)/(msg|srv|action)/([A-Z][A-Za-z0-9]{0,99})')
_PARTS = {'msg': '', 'srv': 'Request', 'action': 'Goal'}    # what is sent to somebody
_INTEGERS = {'octet': (0, 8), 'uint8': (0, 8), 'int8': (1, 8), 'uint16': (0, 16),
             'int16': (1, 16), 'uint32': (0, 32), 'int32': (1, 32), 'uint64': (0, 64),
             'int64': (1, 64)}      # (signed, bits)
_TOO_DEEP = 'bounds is nested too deeply'
_LARGEST_FLOAT = 3.4028234663852886e38      # what is beyond it would arrive as infinity
_WITHOUT_NUL = r'^[^\u0000]*$'     # at which ROS cuts a text

Schema = dict[str, Any]


def interface_schema(name: str, bounds: str = '') -> str:
    """The schema of `geometry_msgs/msg/Twist`, an action's goal or a service's request.

    `bounds` is '' or JSON that says more about some fields, by their dotted names:
    ``{"linear.x": {"minimum": -0.3, "maximum": 0.3}}``. A field whose interface has a default of
    its own may be left out. Raises FlashLlmError(INVALID_CONSTRAINT).
    """
    kind = interface_class(name)
    definitions: dict[str, Schema] = {}
    root = _message(kind, definitions)
    schema: Schema = {'$ref': root['$ref'], '$defs': definitions}
    more = [_bound(kind, path, bound) for path, bound in _bounds(bounds).items()]
    if more:
        schema['allOf'] = more
    try:
        return json.dumps(schema)
    except RecursionError:
        _refuse(_TOO_DEEP)


def interface_outline(name: str, bounds: str = '') -> str:
    """The same in short, for a model to read: in one piece, without the ranges of types.

    Fields for which `bounds` leave one value are not in it. Raises
    FlashLlmError(INVALID_CONSTRAINT).
    """
    return json.dumps(_outline(interface_class(name), _bounds(bounds)))


def _outline(kind: Any, bounds: dict[str, Any]) -> Schema:
    made, properties, required = kind(), {}, []
    for name, slot in _fields(kind).items():
        bound = bounds[name] if isinstance(bounds.get(name), dict) else {}
        inner = {path.removeprefix(f'{name}.'): value for path, value in bounds.items()
                 if path.startswith(f'{name}.')}
        outline = {**_value_outline(slot, inner), **bound}
        if 'const' in outline or outline.get('properties') == {}:
            continue
        properties[name] = outline
        if not _has_default(getattr(made, name), slot):
            required.append(name)
    return {'type': 'object', 'properties': properties, 'required': required}


def _value_outline(slot: Any, bounds: dict[str, Any]) -> Schema:
    if isinstance(slot, NamespacedType):
        return _outline(_class_of(slot), bounds)
    if isinstance(slot, AbstractNestedType):
        return {'type': 'array', 'items': _value_outline(slot.value_type, bounds)}
    return {'type': _value(slot, {})['type']}


def interface_class(name: str) -> Any:
    """The class of an interface; raises FlashLlmError(INVALID_CONSTRAINT)."""
    found = _NAME.fullmatch(name.strip())
    if found is None:
        _refuse(f'{name[:80]!r} is no interface; it must be one such as geometry_msgs/msg/Twist')
    package, folder, kind = found.groups()
    # Whoever asks has no say in what is imported: it is where rosidl has put an interface.
    spec = find_spec(package)
    file = '_' + re.sub(r'(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])', '_', kind).lower()
    is_there = spec is not None and any(Path(place, folder, f'{file}.py').is_file()
                                        for place in spec.submodule_search_locations or ())
    # TWIST has the file of Twist, and is no class.
    found_class = is_there and getattr(importlib.import_module(f'{package}.{folder}'), kind, None)
    if not found_class:
        _refuse(f'the interface {name} is not installed here')
    return getattr(found_class, _PARTS[folder]) if _PARTS[folder] else found_class


def _message(kind: Any, definitions: dict[str, Schema]) -> Schema:
    """A reference to the definition of a message."""
    name = f'{kind.__module__.split(".")[0]}.{kind.__name__}'
    if name not in definitions:
        definitions[name] = {}      # keeps the name
        fields = _fields(kind)
        made = kind()
        required = [field for field, slot in fields.items()
                    if not _has_default(getattr(made, field), slot)]
        definitions[name] = {
            'type': 'object',
            'properties': {field: _value(slot, definitions) for field, slot in fields.items()},
            'required': required, 'additionalProperties': False}
    return {'$ref': f'#/$defs/{name}'}


def _fields(kind: Any) -> dict[str, Any]:
    """Names and types."""
    return dict(zip(kind.get_fields_and_field_types(), kind.SLOT_TYPES, strict=False))


def _has_default(value: Any, slot: Any) -> bool:
    if isinstance(slot, Array):
        return any(_has_default(item, slot.value_type) for item in value)
    if isinstance(slot, NamespacedType):
        return False
    return bool(len(value)) if isinstance(slot, AbstractSequence) else value not in (
        0, '', False, b'\0')


def _value(slot: Any, definitions: dict[str, Schema]) -> Schema:
    if isinstance(slot, NamespacedType):
        return _message(_class_of(slot), definitions)
    if isinstance(slot, AbstractNestedType):
        schema: Schema = {'type': 'array', 'items': _value(slot.value_type, definitions)}
        if isinstance(slot, Array):
            schema |= {'minItems': slot.size, 'maxItems': slot.size}
        elif isinstance(slot, BoundedSequence):
            schema['maxItems'] = slot.maximum_size
        return schema
    if isinstance(slot, AbstractGenericString):
        longest = getattr(slot, 'maximum_size', None)
        # Of a string rosidl counts bytes, of which a character has up to four.
        most = longest if longest is None or not isinstance(slot, AbstractString) else longest // 4
        schema = {'type': 'string', 'pattern': _WITHOUT_NUL}
        return schema if most is None else schema | {'maxLength': most}
    name = slot.typename if isinstance(slot, BasicType) else str(slot)
    if name == 'boolean':
        return {'type': 'boolean'}
    if name in _INTEGERS:
        signed, bits = _INTEGERS[name]
        return {'type': 'integer', 'minimum': -signed * 2 ** (bits - 1),
                'maximum': 2 ** (bits - signed) - 1}
    if name == 'float':
        return {'type': 'number', 'minimum': -_LARGEST_FLOAT, 'maximum': _LARGEST_FLOAT}
    if name in ('double', 'long double'):
        return {'type': 'number'}
    _refuse(f'an interface has a field of type {name}, which JSON does not write')


def _class_of(slot: NamespacedType) -> Any:
    return getattr(importlib.import_module('.'.join(slot.namespaces)), slot.name)


def _bounds(text: str) -> dict[str, Any]:
    if not text:
        return {}
    try:
        found = json.loads(text)
    except ValueError as error:
        _refuse(f'bounds is no JSON: {error}')
    except RecursionError:
        _refuse(_TOO_DEEP)
    if not isinstance(found, dict):
        _refuse('bounds must be an object such as {"linear.x": {"maximum": 0.3}}')
    return found


def _bound(kind: Any, path: str, bound: Any) -> Schema:
    """A schema of a message that says something about one field."""
    name, dot, rest = path.partition('.')
    fields = _fields(kind)
    if name not in fields:
        _refuse(f'bounds names {path!r}, but the fields are {", ".join(fields)}')
    if not dot:
        return {'properties': {name: bound}}
    slot, lists = fields[name], 0
    while isinstance(slot, AbstractNestedType):
        slot, lists = slot.value_type, lists + 1
    if not isinstance(slot, NamespacedType):
        _refuse(f'bounds names {path!r}, but {name} has no fields')
    inner = _bound(_class_of(slot), rest, bound)
    for _ in range(lists):
        inner = {'items': inner}
    return {'properties': {name: inner}}


def _refuse(reason: str) -> None:
    raise FlashLlmError(ErrorCode.INVALID_CONSTRAINT, f'{reason}.')
