"""Where the milliseconds of one token go: ONNX Runtime, kernels, waiting for reads, Python.

    python bench/token_profile.py STORE 560MB [--mode sparse] [--sparsity 0.7] [--share 0.75]
        [--threads 1 2] [--tokens 32] [--json PATH]

Calls are timed from outside, by wrapping them; waiting inside of the core is counted by the core
itself. Medians over the tokens of one greedy answer, and beside them the same without the wraps.
"""

from argparse import ArgumentParser, Namespace
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
import json
import multiprocessing
import os
from pathlib import Path
import statistics
import sys
import time
from typing import Any

from rich.box import MARKDOWN
from rich.console import Console
from rich.table import Table

from bench.support.process_figures import cpu_seconds
from flash_llm_ros.cli.progress import Steps
from flash_llm_ros.engine import Engine, EngineConfig, GenerationRequest
from flash_llm_ros.engine.byte_size import parse_byte_size
from flash_llm_ros.engine.request.generation import Generation
from flash_llm_ros.store.errors import FlashLlmError

PROMPT = 'Tell a long story about a robot in the mountains.'
_WAITING, _CLAIMING, _READING = 'wait_ns', 'claim_ns', 'read_ns'


class Stopwatches:
    """Seconds and calls by label, of whatever was wrapped; inner calls are taken off outer ones."""

    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()
        self.calls: Counter[str] = Counter()
        self._inner = [0.0]
        self._wrapped: list[tuple[Any, str, Any]] = []

    def timed(self, label: str, work: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            self._inner.append(0.0)
            begin = time.perf_counter()
            try:
                return work(*args, **kwargs)
            finally:
                took = time.perf_counter() - begin
                self.seconds[label] += took - self._inner.pop()
                self.calls[label] += 1
                self._inner[-1] += took
        return call

    def wrap(self, owner: Any, name: str, label: str) -> None:
        self.replace(owner, name, self.timed(label, getattr(owner, name)))

    def replace(self, owner: Any, name: str, stand_in: Any) -> None:
        self._wrapped.append((owner, name, getattr(owner, name)))
        setattr(owner, name, stand_in)

    def unwrap(self) -> None:
        for owner, name, original in self._wrapped:
            setattr(owner, name, original)
        self._wrapped.clear()


class TimedCore:
    """The core, each of its methods timed under its own name; its other attributes as they are."""

    def __init__(self, core: Any, watches: Stopwatches) -> None:
        self._core, self._watches = core, watches

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._core, name)
        if callable(found) and name not in ('stats', 'close'):
            found = self._watches.timed(f'core.{name}', found)
            setattr(self, name, found)      # the next look-up comes here no more
        return found


def wrap(engine: Engine, generation: Generation, watches: Stopwatches) -> None:
    """Time what a token goes through."""
    model = engine.model
    watches.wrap(model.attention, 'run', 'attention')
    watches.wrap(model.attention, 'final_norm', 'final norm')
    if (predictors := getattr(model.feed_forward, '_predictors', None)) is not None:
        watches.wrap(predictors, 'wanted', 'predictors')
    for correction in getattr(model.feed_forward, '_corrections', None) or ():
        watches.wrap(correction, 'add', 'corrections')
    if model.shortlist is not None:
        watches.wrap(model.shortlist, 'logits', 'shortlisting the head')
    watches.wrap(generation._sampler, 'pick', 'sampler')
    watches.wrap(generation._stream, 'step', 'text of the token')
    watches.replace(model.window, 'core', TimedCore(model.window.core, watches))


def profile(engine: Engine, tokens: int, watched: bool) -> list[dict[str, float]]:
    """One record a token, in seconds by part; 'total' is from token to token."""
    watches = Stopwatches()
    generation = engine.start(GenerationRequest(PROMPT, max_tokens=tokens))
    if watched:
        wrap(engine, generation, watches)
    records: list[dict[str, float]] = []
    before: dict[str, float] | None = None
    for _ in generation:
        if not generation.tokens:
            continue
        now = {**watches.seconds, **_counted(engine), 'total': time.perf_counter()}
        if before is not None:
            records.append({name: value - before.get(name, 0.0) for name, value in now.items()})
        before = now
    watches.unwrap()
    return records


def _counted(engine: Engine) -> dict[str, float]:
    stats = engine.stats()
    return {**{name: stats[name] / 1e9 for name in (_WAITING, _CLAIMING, _READING)},
            'bytes': stats['flash_bytes'], 'reads': stats['flash_reads'], 'cpu': cpu_seconds()}


def parts_of(record: dict[str, float]) -> dict[str, float]:
    """What 'total' is made of, in seconds: the other values add up to it."""
    core = sum(value for name, value in record.items() if name.startswith('core.'))
    parts = {name: value for name, value in record.items()
             if name not in ('bytes', 'reads', 'cpu', 'total', _READING, _WAITING, _CLAIMING)
             and not name.startswith('core.')}
    parts |= {'waiting for reads': record[_WAITING], 'finding slots': record[_CLAIMING],
              'kernels': core - record[_WAITING] - record[_CLAIMING]}
    return {**parts, 'Python': record['total'] - sum(parts.values()), 'total': record['total']}


def middle(records: list[dict[str, float]]) -> dict[str, float]:
    """The median of each value."""
    return {name: statistics.median(record[name] for record in records) for name in records[0]}


def measure(options: Namespace, budget: int, threads: int) -> dict[str, Any]:
    """Parts of a token and what is known beside them, for one number of threads."""
    engine = Engine.open(EngineConfig(options.store, budget, options.mode, threads=threads,
                                      sparsity=options.sparsity, neuron_share=options.share,
                                      lookup_tokens=0))
    try:
        engine.model.spec = replace(engine.model.spec, end_tokens=())
        plain = profile(engine, options.tokens, watched=False)
        watched = profile(engine, options.tokens, watched=True)
        layers = engine.model.spec.layers
        kernels = engine.model.window.core.kernels
    finally:
        engine.close()

    unwatched = middle(plain)
    calls = {name: value for name, value in middle(watched).items() if name.startswith('core.')}
    return {'threads': threads, 'parts': middle([parts_of(record) for record in watched]),
            'calls': calls, 'layers': layers, 'kernels': kernels, 'unwatched': unwatched['total'],
            'bytes': unwatched['bytes'], 'reads': unwatched['reads'],
            'reading': unwatched[_READING], 'cpu': unwatched['cpu'], 'load': os.getloadavg()[0]}


def show(figures: list[dict[str, Any]]) -> None:
    layers = figures[0]['layers']
    table = Table(box=MARKDOWN)
    table.add_column('part', no_wrap=True)
    for one in figures:
        table.add_column(f'{one["threads"]} thr.: ms', justify='right')
        table.add_column('share', justify='right')
        table.add_column(f'a layer of {layers}', justify='right')
    names = sorted(figures[0]['parts'], key=lambda name: (name == 'total',
                                                          -figures[0]['parts'][name]))
    for name in names:
        cells = [name]
        for one in figures:
            value, total = one['parts'].get(name, 0.0), one['parts']['total']
            cells += [f'{value * 1e3:.2f}', f'{value / total:.0%}', f'{value / layers * 1e3:.3f}']
        table.add_row(*cells)
    console = Console(width=120)
    console.print(table)
    for one in figures:
        calls = ', '.join(f'{name.removeprefix("core.")} {value * 1e3:.2f} ms'
                          for name, value in one['calls'].items() if value * 1e3 >= 0.005)
        console.print(
            f'{one["threads"]} thr.: {one["unwatched"] * 1e3:.2f} ms without the stopwatches, '
            f'{one["cpu"] * 1e3:.1f} ms of CPU; {one["bytes"] / 1e6:.1f} MB in {one["reads"]:.0f} '
            f'reads, under way for {one["reading"] * 1e3:.1f} ms; calls of the core '
            f'({one["kernels"]}), waits included: {calls}; load average {one["load"]:.1f}',
            highlight=False)


def main() -> int:
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('store', type=Path)
    parser.add_argument('budget', help="'560MB'")
    parser.add_argument('--mode', choices=('exact', 'sparse', 'aggressive'), default='exact')
    parser.add_argument('--sparsity', type=float, help='of mode sparse')
    parser.add_argument('--share', type=float, help='of mode aggressive')
    parser.add_argument('--threads', type=int, nargs='+', default=[1, 2])
    parser.add_argument('--tokens', type=int, default=32)
    parser.add_argument('--json', type=Path)
    options = parser.parse_args()
    if options.tokens < 3:
        parser.error(f'--tokens is {options.tokens}; it must be at least 3')
    try:
        budget = parse_byte_size('budget', options.budget)
        figures = []
        # A process each: what the engine before has left would make the next window larger.
        with Steps() as steps, ProcessPoolExecutor(
                1, multiprocessing.get_context('spawn'), max_tasks_per_child=1) as process:
            for threads in options.threads:
                figures.append(process.submit(measure, options, budget, threads).result())
                steps('profiles', len(figures), len(options.threads))
    except FlashLlmError as error:
        print(f'error: {error}', file=sys.stderr)
        return 1
    show(figures)
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + '\n')
    parts = figures[0]['parts']
    largest = sorted((name for name in parts if name != 'total'), key=parts.get)[:-4:-1]
    print(f'{options.store.name}, {options.budget}, {options.mode}, {options.threads[0]} thread'
          f'{"s" * (options.threads[0] > 1)}: {parts["total"] * 1e3:.1f} ms a token, of which '
          + ', '.join(f'{parts[name] * 1e3:.1f} {name}' for name in largest))
    return 0


if __name__ == '__main__':
    sys.exit(main())
