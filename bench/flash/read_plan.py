"""What planning scattered reads by the device profile saves: the same answers with and without.

    python bench/read_plan.py STORE BUDGET [--sparsity 0.8] [--tokens 48] [--rounds 3] [--json PATH]

Sparse mode on a store that `flash_llm probe` has measured. Without the profile only neighbours
are read together. Runs alternate; medians over the rounds.
"""

from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
import json
import multiprocessing
import os
from pathlib import Path
import shutil
import statistics
import sys
from tempfile import TemporaryDirectory
import time
from typing import Any

from rich.console import Console
from rich.table import Table

from flash_llm_ros.cli.progress import Steps
from flash_llm_ros.engine import Engine, EngineConfig, GenerationRequest
from flash_llm_ros.engine.byte_size import parse_byte_size
from flash_llm_ros.store.device_profile import PROFILE, DeviceProfile, usable_profile

PROMPT = 'Tell a long story about a robot in the mountains.'
COUNTED = ('flash_bytes', 'flash_reads', 'gap_groups', 'misses')


@contextmanager
def without_profile(store: Path) -> Iterator[Path]:
    """The same store seen through hard links, less its profile."""
    with TemporaryDirectory(dir=store.parent) as folder:
        yield Path(shutil.copytree(store, Path(folder, store.name), copy_function=os.link,
                                   ignore=shutil.ignore_patterns(PROFILE)))


def measure(store: Path, options: Namespace) -> dict[str, Any]:
    """Figures per token of one answer, in a process of its own; the tokens, to compare."""
    config = EngineConfig(store, parse_byte_size('budget', options.budget), 'sparse',
                          sparsity=options.sparsity, verify=False)
    engine = Engine.open(config)
    try:
        generation = engine.start(GenerationRequest(PROMPT, max_tokens=options.tokens))
        pieces = iter(generation)
        next(pieces)                            # the prompt is read densely
        before, begin, done = engine.stats(), time.perf_counter(), len(generation.tokens)
        for _ in pieces:
            pass
        seconds, after = time.perf_counter() - begin, engine.stats()
    finally:
        engine.close()
    tokens = len(generation.tokens) - done
    figures = {name: (after[name] - before[name]) / tokens for name in COUNTED}
    return {**figures, 'tokens_per_second': tokens / seconds, 'tokens': generation.tokens}


def main() -> int:
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('store', type=Path)
    parser.add_argument('budget')
    parser.add_argument('--sparsity', type=float)
    parser.add_argument('--tokens', type=int, default=48)
    parser.add_argument('--rounds', type=int, default=3)
    parser.add_argument('--json', type=Path)
    options = parser.parse_args()
    profile, line = usable_profile(options.store)
    if profile is None:
        parser.error(line)
    load = os.getloadavg()[0]
    runs: dict[str, list[dict[str, Any]]] = {'neighbours only': [], 'planned': []}
    with without_profile(options.store) as plain, Steps() as steps:
        for round_ in range(options.rounds):
            for index, (name, store) in enumerate(zip(runs, (plain, options.store), strict=True)):
                # A process that has opened an engine before has another share for the window.
                with ProcessPoolExecutor(1, multiprocessing.get_context('spawn')) as process:
                    runs[name].append(process.submit(measure, store, options).result())
                steps('measuring', 2 * round_ + index + 1, 2 * options.rounds)
    if len({tuple(run['tokens']) for found in runs.values() for run in found}) != 1:
        raise SystemExit('the answers differ')
    rows = {name: {key: statistics.median(run[key] for run in found)
                   for key in (*COUNTED, 'tokens_per_second')} for name, found in runs.items()}
    _print(rows, profile, load, options)
    if options.json:
        options.json.write_text(json.dumps({'load': load, 'medians': rows, 'runs': runs},
                                           indent=2) + '\n')
    plain, planned = rows.values()
    print(f'planned: {planned["flash_reads"] / plain["flash_reads"]:.2f}x the reads, '
          f'{planned["flash_bytes"] / plain["flash_bytes"]:.2f}x the bytes, '
          f'{planned["tokens_per_second"] / plain["tokens_per_second"]:.2f}x the tokens/s')
    return 0


def _print(rows: dict[str, dict[str, float]], profile: DeviceProfile, load: float,
           options: Namespace) -> None:
    table = Table('', 'misses', 'gap groups', 'reads', 'MB', 'device needs', 'tokens/s',
                  title=f'per token; budget {options.budget}, load average {load:.1f}')
    for name, row in rows.items():
        floor = profile.floor_seconds(row['flash_bytes'], row['flash_reads'], 'random')
        table.add_row(name, f'{row["misses"]:.0f}', f'{row["gap_groups"]:.0f}',
                      f'{row["flash_reads"]:.0f}', f'{row["flash_bytes"] / 1e6:.2f}',
                      f'{floor * 1e3:.1f} ms', f'{row["tokens_per_second"]:.1f}')
    Console(width=100).print(table)


if __name__ == '__main__':
    sys.exit(main())
