"""The answer to an interface, as its message."""

import importlib
import json
import math
from typing import Any, TypeVar

from rosidl_parser.definition import AbstractNestedType, BasicType, NamespacedType

from flash_llm_ros.client.checked_message import check_text, checked_message

Message = TypeVar('Message')


def message_from(kind: type[Message], text: str) -> Message:
    """Return a message of `kind` (a goal or a request, too) with what an answer says.

    Fields that it leaves out keep their defaults. ValueError for JSON that is no such message, or
    says what rclpy could not send.
    """
    try:
        return _filled(kind, json.loads(text))
    except (AssertionError, AttributeError, KeyError, OverflowError, RecursionError, TypeError,
            ValueError) as error:
        reason = str(error).rstrip('.')
        raise ValueError(f'{text[:80]!r} is no {kind.__name__}: {reason}.') from None


def _filled(kind: Any, values: dict[str, Any]) -> Any:
    slots = dict(zip(kind.get_fields_and_field_types(), kind.SLOT_TYPES, strict=False))
    made = checked_message(kind)
    for name, value in values.items():
        setattr(made, name, _value(name, slots[name], value))
    return made


def _value(name: str, slot: Any, value: Any) -> Any:
    if isinstance(slot, AbstractNestedType):
        if not isinstance(value, list):
            raise ValueError(f'{name} is no list')
        return [_value(name, slot.value_type, item) for item in value]
    if isinstance(slot, NamespacedType):
        return _filled(getattr(importlib.import_module('.'.join(slot.namespaces)), slot.name),
                       value)
    if isinstance(value, str):
        check_text(name, value)
    elif isinstance(slot, BasicType) and slot.typename in ('float', 'double', 'long double'):
        if not math.isfinite(value):
            raise ValueError(f'{name} is not finite')
        return float(value)
    elif isinstance(slot, BasicType) and slot.typename == 'octet':
        return bytes([value])
    return value
