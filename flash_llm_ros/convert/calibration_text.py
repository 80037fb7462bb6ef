"""Text to calibrate on: files, the package's own, or what the model itself writes."""

from collections.abc import Callable, Iterator
from importlib.resources import files
import json
from pathlib import Path
from typing import Any

from flash_llm_ros.engine import Engine, GenerationRequest
from flash_llm_ros.engine.request.sampling import SamplingParams

JSON_LINES = ('.jsonl', '.ndjson')
_ANSWER_TOKENS = 192


def default_text() -> str:
    """What `convert` calibrates on when it is given no text."""
    return files(__package__).joinpath('default_text.txt').read_text('utf-8')


def read_texts(paths: list[Path]) -> list[str]:
    """The text of every file, or of every line of a JSON lines file.

    A line is a string, an object whose `text`, `content` or `prompt` and `response` are strings,
    or one with `messages` of such. ValueError names the file and the line; OSError.
    """
    texts = []
    for path in paths:
        try:
            text = path.read_text(encoding='utf-8')
        except UnicodeDecodeError as error:
            raise ValueError(f'{path} is not UTF-8: {error}') from None
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


def tokens_of(engine: Engine, texts: list[str], most: int) -> list[int]:
    """The texts one after the other, at most so many tokens."""
    tokens: list[int] = []
    for text in texts:
        tokens += engine.tokenize(text)
        if len(tokens) >= most:
            break
    return tokens[:most]


def generated_tokens(engine: Engine, most: int, done: list[list[int]],
                     keep: Callable[[list[int]], None],
                     progress: Callable[[int, int], None]) -> list[int]:
    """Chats of the model with the package's own prompts, templates included.

    The same store gives the same tokens. `done` are the chats of an interrupted call, which has
    given each of them to `keep`.
    """
    prompts = files(__package__).joinpath('prompts.txt').read_text('utf-8').splitlines()
    chats = list(done)
    while (count := sum(map(len, chats))) < most:
        number = len(chats)
        request = GenerationRequest(
            prompts[number % len(prompts)], max_tokens=_ANSWER_TOKENS,
            sampling=SamplingParams(temperature=1.0, top_k=0, top_p=1.0, seed=number))
        generation = engine.start(request)
        for _ in generation:
            progress(min(count + len(generation.tokens), most - 1), most)
        chats.append([int(token) for token in (*generation.prompt_tokens, *generation.tokens)])
        keep(chats[-1])
    progress(most, most)
    return [token for chat in chats for token in chat][:most]
