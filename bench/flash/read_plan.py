"""What planning scattered reads by the device profile saves in mode gated: the same answers with
and without; takes a store of a gated model that `flash_llm probe` has measured.

Without the profile only neighbours are read together. Runs alternate; medians over the rounds.
"""

from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from contextlib import contextmanager
import os
from pathlib import Path
import shutil
import statistics
import sys
from tempfile import TemporaryDirectory
import time
from typing import Any

from bench.support.command import Report, apart, at_least, byte_size, command, run, show
from flash_llm_ros.cli.progress import Steps
from flash_llm_ros.engine import Engine, EngineConfig, GenerationRequest
from flash_llm_ros.store.device_profile import PROFILE, usable_profile

PROMPT = 'Tell a long story about a robot in the mountains.'
COUNTED = ('flash_bytes', 'flash_reads', 'gap_groups', 'misses')


@contextmanager
def without_profile(store: Path) -> Iterator[Path]:
    """The same store seen through hard links, less its profile."""
    with TemporaryDirectory(dir=store.parent) as folder:
        yield Path(shutil.copytree(store, Path(folder, store.name), copy_function=os.link,
                                   ignore=shutil.ignore_patterns(PROFILE)))


def answered(store: Path, budget: int, most_tokens: int) -> dict[str, Any]:
    """Figures per token of one answer, in a process of its own; the tokens, to compare."""
    engine = Engine.open(EngineConfig(store, budget, 'gated', context_length=512, verify=False))
    try:
        generation = engine.start(GenerationRequest(PROMPT, max_tokens=most_tokens))
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


def measure(options: Namespace) -> Report:
    profile, line = usable_profile(options.store)
    if profile is None:
        raise ValueError(line)
    runs: dict[str, list[dict[str, Any]]] = {'neighbours only': [], 'planned': []}
    with without_profile(options.store) as plain, Steps() as steps:
        for done in range(options.rounds):
            for name, store in zip(runs, (plain, options.store), strict=True):
                runs[name].append(apart(answered, store, options.budget, options.tokens))
            steps('rounds', done + 1, options.rounds)
    if len({tuple(run['tokens']) for found in runs.values() for run in found}) != 1:
        raise RuntimeError('the answers differ')
    rows = {name: {key: statistics.median(run[key] for run in found)
                   for key in (*COUNTED, 'tokens_per_second')} for name, found in runs.items()}
    show(('per token', 'misses', 'gap groups', 'reads', 'MB', 'device needs ms', 'tokens/s'),
         [(name, f'{row["misses"]:.0f}', f'{row["gap_groups"]:.0f}', f'{row["flash_reads"]:.0f}',
           f'{row["flash_bytes"] / 1e6:.2f}', '{:.1f}'.format(1e3 * profile.floor_seconds(
               row['flash_bytes'], row['flash_reads'], 'random')),
           f'{row["tokens_per_second"]:.1f}') for name, row in rows.items()])
    plain, planned = rows.values()
    return Report({'medians': rows, 'runs': runs}, 'planned: ' + ', '.join(
        f'{planned[key] / plain[key]:.2f}x the {what}' for key, what in (
            ('flash_reads', 'reads'), ('flash_bytes', 'bytes'), ('tokens_per_second', 'tokens/s'))))


def parser() -> ArgumentParser:
    result = command(__doc__)
    result.add_argument('store', type=Path)
    result.add_argument('budget', type=byte_size)
    result.add_argument('--tokens', type=at_least(3), default=48)
    result.add_argument('--rounds', type=at_least(1), default=3)
    return result


if __name__ == '__main__':
    sys.exit(run(parser(), measure))
