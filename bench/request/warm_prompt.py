"""Time to the first token with what is kept of a prompt, in place or on flash: a system prompt, or
a conversation.

Each way is tried in turn, round after round; texts have to be the same. The page cache is told to
forget the file of the system prompt before it is read (that of a conversation has no name). Times
include reading them, or putting away those of another conversation.
"""

from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
import statistics
import sys
import tempfile
import time
from typing import Any

from bench.support.command import Report, at_least, byte_size, command, run, show
from bench.support.page_cache import drop
from flash_llm_ros.cli.progress import Steps
from flash_llm_ros.engine import Engine, EngineConfig, GenerationRequest, Message

_RULES = ('You are the voice of a mobile robot with two wheels, a lidar and a gripper. '
          'Answer in one short sentence. Never promise what the robot cannot do. '
          'Distances are in metres and angles in degrees. ')
_TURNS = ('Where are you going now?', 'How long will it take you to get there?', 'And then?')
_ANSWER_TOKENS = 16
_STRANGER = GenerationRequest('Something else', raw=True, max_tokens=1)


class Ways:
    """Every way to come to the first token of one of two answers."""

    def __init__(self, engine: Engine, folder: Path, system_prompt: str) -> None:
        self._engine, self._folder, self._system = engine, folder, system_prompt

    def system_computed(self) -> dict[str, Any]:
        self._forget()
        for file in self._folder.glob('*.kv'):
            file.unlink()
        return self._timed(self._first())

    def system_from_flash(self) -> dict[str, Any]:
        self._forget()
        return self._timed(self._first())

    def system_in_place(self) -> dict[str, Any]:
        return self._timed(self._first())

    def conversation_computed(self) -> dict[str, Any]:
        messages = self._talk()
        self._forget()
        return self._timed(GenerationRequest(
            messages=(Message('system', self._system), *messages, Message('user', _TURNS[-1])),
            max_tokens=_ANSWER_TOKENS))

    def conversation_from_flash(self) -> dict[str, Any]:
        self._talk()
        self._forget()
        return self._timed(self._next(_TURNS[-1]))

    def conversation_in_place(self) -> dict[str, Any]:
        self._talk()
        return self._timed(self._next(_TURNS[-1]))

    def _first(self) -> GenerationRequest:
        return GenerationRequest(_TURNS[0], system_prompt=self._system, keep_system_prompt=True,
                                 max_tokens=_ANSWER_TOKENS)

    def _next(self, turn: str) -> GenerationRequest:
        return GenerationRequest(turn, system_prompt=self._system, keep_system_prompt=True,
                                 session_id='bench', max_tokens=_ANSWER_TOKENS)

    def _talk(self) -> list[Message]:
        self._engine.reset_session('')
        messages = []
        for turn in _TURNS[:-1]:
            text = ''.join(self._engine.start(self._next(turn)))
            messages += [Message('user', turn), Message('assistant', text)]
        return messages

    def _forget(self) -> None:
        """Have something else in the KV cache, and the file not in the page cache."""
        ''.join(self._engine.start(_STRANGER))
        drop(self._folder)

    def _timed(self, request: GenerationRequest) -> dict[str, Any]:
        begin, first = time.perf_counter(), 0.0
        generation = self._engine.start(request)
        for _ in generation:
            if generation.tokens and not first:
                first = time.perf_counter() - begin
                read = generation.stats.flash_bytes
        stats = generation.stats
        return {'first_ms': first * 1e3, 'bytes': read, 'prompt': stats.prompt_tokens,
                'cached': stats.cached_tokens, 'text': generation.text}


@contextmanager
def opened(options: Namespace, folder: Path) -> Iterator[Engine]:
    engine = Engine.open(EngineConfig(
        options.store, options.budget, threads=options.threads, context_length=options.context,
        session_folder=folder))
    try:
        yield engine
    finally:
        engine.close()


def medians(options: Namespace, folder: Path) -> dict[str, dict[str, Any]]:
    """One record a way: medians of its rounds."""
    system_prompt = _RULES * max(1, options.context // 2 // 50)
    runs: dict[str, list[dict[str, Any]]] = {}
    with opened(options, folder) as engine, Steps() as steps:
        ways = Ways(engine, folder, system_prompt)
        for index in range(options.rounds):
            for way in (ways.system_computed, ways.system_from_flash, ways.system_in_place,
                        ways.conversation_computed, ways.conversation_from_flash,
                        ways.conversation_in_place):
                runs.setdefault(way.__name__, []).append(way())
            steps('rounds', index + 1, options.rounds)
    return {name: {**found[-1], 'texts': sorted({run['text'] for run in found}),
                   'first_ms': statistics.median(run['first_ms'] for run in found),
                   'slowest_ms': max(run['first_ms'] for run in found),
                   'bytes': statistics.median(run['bytes'] for run in found)}
            for name, found in runs.items()}


def measure(options: Namespace) -> Report:
    with tempfile.TemporaryDirectory(dir=options.folder or options.store.parent) as folder:
        figures = medians(options, Path(folder))
    show(('', 'prompt', 'of it kept', 'first token ms', 'slowest', 'MB of weights read'),
         [(name.replace('_', ' '), str(one['prompt']), str(one['cached']),
           f'{one["first_ms"]:.0f}', f'{one["slowest_ms"]:.0f}', f'{one["bytes"] / 1e6:.0f}')
          for name, one in figures.items()])
    for ours, other in (('system_from_flash', 'system_computed'),
                        ('system_in_place', 'system_computed'),
                        ('conversation_from_flash', 'conversation_in_place')):
        if figures[ours]['texts'] != figures[other]['texts']:
            raise RuntimeError(f'{ours} gives another text than {other}')
    cold, warm = (figures[f'system_{way}']['first_ms'] for way in ('computed', 'from_flash'))
    return Report(figures, 'first token with a system prompt of '
                  f'{figures["system_from_flash"]["cached"]} tokens: {cold:.0f} ms cold, '
                  f'{warm:.0f} ms warm ({cold / warm:.1f} times as fast), same bytes')


def parser() -> ArgumentParser:
    result = command(__doc__)
    result.add_argument('store', type=Path)
    result.add_argument('budget', type=byte_size, help="'96MB'")
    result.add_argument('--context', type=at_least(2), default=512)
    result.add_argument('--rounds', type=at_least(1), default=5)
    result.add_argument('--threads', type=at_least(1), default=1)
    result.add_argument('--folder', type=Path,
                        help='where keys and values are kept (default: beside the store)')
    return result


if __name__ == '__main__':
    sys.exit(run(parser(), measure))
