"""Time to first token in exact mode, by length of the prompt and by prefill_chunk.

    python bench/prefill.py STORE 560MB [--chunks 64 128] [--prompts 16 128 512] [--threads 1]
        [--rounds 3] [--json PATH]

The budget is the same for every chunk: scratch that a larger chunk takes is taken off the window.
Chunks take turns, a process each time; figures are medians over the rounds.
"""

from argparse import ArgumentParser, Namespace
from concurrent.futures import ProcessPoolExecutor
import json
import multiprocessing
import os
from pathlib import Path
import statistics
import sys
import time
from typing import Any

import numpy as np
from rich.box import MARKDOWN
from rich.console import Console
from rich.table import Table

from bench.model.token_profile import Stopwatches, TimedCore
from flash_llm_ros.cli.progress import Steps
from flash_llm_ros.engine import Engine, EngineConfig
from flash_llm_ros.engine.byte_size import parse_byte_size
from flash_llm_ros.engine.memory.process_memory import peak_resident_bytes, resident_bytes
from flash_llm_ros.store.errors import FlashLlmError

_RUNS = 2
_KEYS = ('chunk', 'prompt', 'passes')


def measure(options: Namespace, budget: int, chunk: int) -> list[dict[str, Any]]:
    """One record a prompt length for one chunk; milliseconds and bytes, medians of the runs."""
    bare = resident_bytes()
    engine = Engine.open(EngineConfig(options.store, budget, threads=options.threads,
                                      context_length=max(options.prompts) + 8,
                                      prefill_chunk=chunk))
    try:
        records = []
        for length in options.prompts:
            runs = [_prefill(engine, length) for _ in range(_RUNS)]
            records.append({'chunk': chunk, 'prompt': length, 'load': os.getloadavg()[0],
                            'passes': -(-length // chunk), 'window': engine.plan.window_bytes,
                            **{name: statistics.median(run[name] for run in runs)
                               for name in runs[0]}})
        for record in records:
            record['above_budget'] = peak_resident_bytes() - bare - budget
        return records
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
    model, watches = engine.model, Stopwatches()
    tokens = np.random.default_rng(length).integers(0, model.spec.embedding.vocab_size, length)
    logits = np.empty((1, model.spec.embedding.vocab_size), np.float32)
    watches.wrap(model.attention, 'run', 'attention')
    watches.replace(model.window, 'core', TimedCore(model.window.core, watches))
    before, begin = engine.stats(), time.perf_counter()
    for start in range(0, length, model.chunk):
        part = tokens[start:start + model.chunk]
        model.forward(part, start, True, logits if start + len(part) == length else None)
    total, after = time.perf_counter() - begin, engine.stats()
    watches.unwrap()
    core = sum(value for name, value in watches.seconds.items() if name.startswith('core.'))
    waiting = (after['wait_ns'] - before['wait_ns']) / 1e9
    return {'total_ms': total * 1e3, 'attention_ms': watches.seconds['attention'] * 1e3,
            'core_ms': (core - waiting) * 1e3, 'waiting_ms': waiting * 1e3,
            'bytes': after['flash_bytes'] - before['flash_bytes']}


def main() -> int:
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('store', type=Path)
    parser.add_argument('budget', help="'560MB'")
    parser.add_argument('--chunks', type=int, nargs='+', default=[64, 128, 256, 512])
    parser.add_argument('--prompts', type=int, nargs='+', default=[16, 128, 512])
    parser.add_argument('--threads', type=int, default=1)
    parser.add_argument('--rounds', type=int, default=3)
    parser.add_argument('--json', type=Path)
    options = parser.parse_args()
    try:
        budget = parse_byte_size('budget', options.budget)
        records: list[dict[str, Any]] = []
        turns = options.chunks * options.rounds
        # A process each, so that peaks are those of one engine.
        with Steps() as steps, ProcessPoolExecutor(
                1, multiprocessing.get_context('spawn'), max_tasks_per_child=1) as process:
            for index, chunk in enumerate(turns):
                records += process.submit(measure, options, budget, chunk).result()
                steps('turns', index + 1, len(turns))
    except FlashLlmError as error:
        print(f'error: {error}', file=sys.stderr)
        return 1
    figures = medians(records)
    table = Table('chunk', 'prompt', 'ms', 'range', 'ORT', 'core', 'waiting',
                  'passes', 'MB read', 'window MB', 'over budget', 'load', box=MARKDOWN)
    for one in figures:
        table.add_row(str(one['chunk']), str(one['prompt']), f'{one["total_ms"]:.0f}',
                      f'{one["least_ms"]:.0f}-{one["most_ms"]:.0f}',
                      f'{one["attention_ms"]:.0f}', f'{one["core_ms"]:.0f}',
                      f'{one["waiting_ms"]:.0f}', str(one['passes']), f'{one["bytes"] / 1e6:.0f}',
                      f'{one["window"] / 1e6:.1f}', f'{one["above_budget"] / 1e6:+.1f} MB',
                      f'{one["load"]:.1f}')
    Console(width=120).print(table)
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + '\n')
    best = {length: min((one for one in figures if one['prompt'] == length),
                        key=lambda one: one['total_ms']) for length in options.prompts}
    print('; '.join(f'{length} tokens: {one["total_ms"]:.0f} ms with chunks of {one["chunk"]}'
                    for length, one in best.items()))
    return 0


if __name__ == '__main__':
    sys.exit(main())
