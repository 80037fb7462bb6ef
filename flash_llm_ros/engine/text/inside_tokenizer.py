"""A tokenizer for text that stands behind other text: inside of an answer, not at its beginning."""

import json
from typing import Any

from tokenizers import Tokenizer


def inside_tokenizer(definition: str) -> Tokenizer:
    """Puts no blank before a text, and reads special tokens as the text that they are.

    A tokenizer of its own: what is set on one may be in use in another thread.
    """
    parts = json.loads(definition)
    for kind in ('normalizer', 'pre_tokenizer'):
        parts[kind] = _without_blank(parts.get(kind))
    tokenizer = Tokenizer.from_str(json.dumps(parts))
    tokenizer.encode_special_tokens = True
    return tokenizer


def _without_blank(step: dict[str, Any] | None) -> dict[str, Any] | None:
    """A step of tokenizer.json, or None for one that does nothing else."""
    kind = step and step['type']
    if kind == 'Prepend':
        return None
    if kind == 'Metaspace':
        return {**step, 'prepend_scheme': 'never', 'add_prefix_space': False}
    if kind == 'ByteLevel':
        return {**step, 'add_prefix_space': False}
    if kind == 'Sequence':
        name = 'normalizers' if 'normalizers' in step else 'pretokenizers'
        steps = [kept for inner in step[name] if (kept := _without_blank(inner)) is not None]
        return {**step, name: steps}
    return step
