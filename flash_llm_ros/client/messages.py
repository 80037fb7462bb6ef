"""The answer to an interface, as its message."""

import importlib
import json
from typing import Any, TypeVar

from rosidl_parser.definition import AbstractNestedType, BasicType, NamespacedType

from flash_llm_ros.client.checked_message import checked_message

Message = TypeVar('Message')


def message_from(kind: type[Message], text: str) -> Message:
    """Return a message of `kind` (a goal or a request, too) with what an answer says.

    Fields that it leaves out keep their defaults. ValueError for JSON that is no such message.
    """
    try:
        return _filled(kind, json.loads(text))
    except (AssertionError, AttributeError, KeyError, RecursionError, TypeError,
            ValueError) as error:
        raise ValueError(f'{text[:80]!r} is no {kind.__name__}: {error}.') from None


def _filled(kind: Any, values: dict[str, Any]) -> Any:
    slots = dict(zip(kind.get_fields_and_field_types(), kind.SLOT_TYPES, strict=False))
    made = checked_message(kind)
    for name, value in values.items():
        setattr(made, name, _value(slots[name], value))
    return made


def _value(slot: Any, value: Any) -> Any:
    if isinstance(slot, AbstractNestedType):
        return [_value(slot.value_type, item) for item in value]
    if isinstance(slot, NamespacedType):
        return _filled(getattr(importlib.import_module('.'.join(slot.namespaces)), slot.name),
                       value)
    if isinstance(slot, BasicType) and slot.typename in ('float', 'double', 'long double'):
        return float(value)
    if isinstance(slot, BasicType) and slot.typename == 'octet':
        return bytes([value])
    return value
