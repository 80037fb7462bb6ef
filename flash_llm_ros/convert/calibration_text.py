"""Text to calibrate on: files, or the package's own."""

from collections.abc import Iterator
from importlib.resources import files
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flash_llm_ros.engine import Engine

LEAST_TOKENS = 64
JSON_LINES = ('.jsonl', '.ndjson')


def default_text() -> str:
    """What is calibrated on where no text is given."""
    return files(__package__).joinpath('default_text.txt').read_text('utf-8')


def rounding_text() -> str:
    """What weights are rounded for where no text is given: of many kinds."""
    return files(__package__).joinpath('rounding_text.txt').read_text('utf-8')


def read_texts(paths: list[Path]) -> list[str]:
    """The text of every file, or of every line of a JSON lines file.

    A line is a string, an object whose `text`, `content` or `prompt` and `response` are strings,
    or one with `messages` of such. ValueError names the file, and the line.
    """
    texts = []
    for path in paths:
        try:
            text = path.read_text(encoding='utf-8')
        except UnicodeDecodeError as error:
            raise ValueError(f'{path} is not UTF-8: {error}') from None
        except OSError as error:
            raise ValueError(f'{path} cannot be read: {error.strerror}; the text to calibrate on '
                             'must be UTF-8 files, or .jsonl ones.') from None
        texts += list(_lines(path, text)) if path.suffix in JSON_LINES else [text]
    return [text for text in texts if text.strip()]


def _lines(path: Path, text: str) -> Iterator[str]:
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            try:
                yield '\n\n'.join(_strings(json.loads(line)))
            except (ValueError, RecursionError) as error:
                raise ValueError(f'{path}, line {number}: {error}') from None


def _strings(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        if isinstance(value.get('messages'), list):
            return [text for message in value['messages'] for text in _strings(message)]
        found = [value[name] for name in ('text', 'content', 'prompt', 'response')
                 if isinstance(value.get(name), str)]
        if found:
            return found
    raise ValueError('it must be a string, or an object with text, content, prompt, response '
                     'or messages')


def tokens_of(engine: Engine, texts: list[str], most: int) -> NDArray[np.int64]:
    """The texts one after the other, at most so many tokens; ValueError for too few."""
    tokens: list[int] = []
    for text in texts:
        tokens += engine.tokenize(text)
        if len(tokens) >= most:
            break
    if len(tokens[:most]) < LEAST_TOKENS:
        raise ValueError(f'the calibration text has {len(tokens[:most])} tokens; it must have at '
                         f'least {LEAST_TOKENS}')
    return np.array(tokens[:most], np.int64)
