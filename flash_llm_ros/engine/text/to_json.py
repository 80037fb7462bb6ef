"""The filter `tojson` of chat templates, which differs from Jinja's."""

import json
from typing import Any


def to_json(value: Any, ensure_ascii: bool = False, indent: int | str | None = None,
            separators: tuple[str, str] | None = None, sort_keys: bool = False) -> str:
    """As transformers has it: nothing is escaped for HTML, keys keep their order."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators,
                      sort_keys=sort_keys)
