"""Time to the first token in exact mode, by length of the prompt and by prefill_chunk, within the
same budget: scratch that a larger chunk takes is taken off the window.

Chunks take turns, a process each time; figures are medians over the rounds.
"""

from argparse import ArgumentParser, Namespace
from pathlib import Path
import statistics
import sys
import time
from typing import Any

import numpy as np

from bench.support.command import Report, apart, at_least, byte_size, command, run, show
from bench.support.process_figures import peak_resident_bytes, resident_bytes
from bench.support.time_by_part import time_by_part
from flash_llm_ros.cli.progress import Steps
from flash_llm_ros.engine import Engine, EngineConfig

_RUNS = 2
_KEYS = ('chunk', 'prompt', 'passes')


def measured(store: Path, budget: int, threads: int, chunk: int,
             prompts: list[int]) -> list[dict[str, Any]]:
    """One record a prompt length for one chunk; milliseconds and bytes, medians of the runs."""
    bare = resident_bytes()
    engine = Engine.open(EngineConfig(store, budget, 'exact', threads=threads, prefill_chunk=chunk,
                                      context_length=max(prompts) + 8))
    try:
        records = []
        for length in prompts:
            runs = [_prefill(engine, length) for _ in range(_RUNS)]
            records.append({'chunk': chunk, 'prompt': length, 'passes': -(-length // chunk),
                            'window': engine.plan.window_bytes,
                            **{name: statistics.median(run[name] for run in runs)
                               for name in runs[0]}})
        above = peak_resident_bytes() - bare - budget
        return [record | {'above_budget': above} for record in records]
    finally:
        engine.close()


def medians(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One record a chunk and length instead of one a round, with `least_ms` and `most_ms`."""
    groups: dict[tuple[int, ...], list[dict[str, Any]]] = {}
    for record in records:
        groups.setdefault(tuple(record[key] for key in _KEYS), []).append(record)
    return [{name: statistics.median(record[name] for record in group) for name in group[0]}
            | {'least_ms': min(record['total_ms'] for record in group),
               'most_ms': max(record['total_ms'] for record in group)}
            | dict(zip(_KEYS, key, strict=True)) for key, group in groups.items()]


def _prefill(engine: Engine, length: int) -> dict[str, float]:
    """From tokens to the logits of the last one; tokens are random, since time knows no words."""
    model, size = engine.model, engine.model.spec.embedding.vocab_size
    tokens = np.random.default_rng(length).integers(0, size, length)
    logits = np.empty((1, size), np.float32)
    before, begin = engine.stats(), time.perf_counter()
    with time_by_part(engine) as found:
        for start in range(0, length, model.chunk):
            part = tokens[start:start + model.chunk]
            model.forward(part, start, True, logits if start + len(part) == length else None)
    total, after = time.perf_counter() - begin, engine.stats()
    return {'total_ms': total * 1e3, 'bytes': after['flash_bytes'] - before['flash_bytes'],
            **{name: seconds * 1e3 for name, seconds in found.parts.items()}}


def measure(options: Namespace) -> Report:
    records: list[dict[str, Any]] = []
    turns = options.chunks * options.rounds
    with Steps() as steps:
        for done, chunk in enumerate(turns, 1):
            records += apart(measured, options.store, options.budget, options.threads, chunk,
                             options.prompts)
            steps('turns', done, len(turns))
    figures = medians(records)
    show(('chunk', 'prompt', 'ms', 'range', 'ONNX Runtime', 'kernels', 'waiting', 'passes',
          'MB read', 'window MB', 'MB over budget'),
         [(str(one['chunk']), str(one['prompt']), f'{one["total_ms"]:.0f}',
           f'{one["least_ms"]:.0f}-{one["most_ms"]:.0f}', f'{one["ONNX Runtime"]:.0f}',
           f'{one["kernels"]:.0f}', f'{one["waiting for reads"]:.0f}', str(one['passes']),
           f'{one["bytes"] / 1e6:.0f}', f'{one["window"] / 1e6:.1f}',
           f'{one["above_budget"] / 1e6:+.1f}') for one in figures])
    best = {length: min((one for one in figures if one['prompt'] == length),
                        key=lambda one: one['total_ms']) for length in options.prompts}
    return Report(figures, '; '.join(
        f'{length} tokens: {one["total_ms"]:.0f} ms with chunks of {one["chunk"]}'
        for length, one in best.items()))


def parser() -> ArgumentParser:
    result = command(__doc__)
    result.add_argument('store', type=Path)
    result.add_argument('budget', type=byte_size, help="'560MB'")
    result.add_argument('--chunks', type=at_least(1), nargs='+', default=[64, 128, 256, 512])
    result.add_argument('--prompts', type=at_least(1), nargs='+', default=[16, 128, 512])
    result.add_argument('--threads', type=at_least(1), default=1)
    result.add_argument('--rounds', type=at_least(1), default=3)
    return result


if __name__ == '__main__':
    sys.exit(run(parser(), measure))
