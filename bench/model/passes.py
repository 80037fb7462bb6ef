"""How long a pass takes that computes several tokens at once, each with its logits, as a pass does
that checks guesses; by threads.

Numbers of tokens take turns, behind a prompt of 64 tokens; figures are medians over the rounds.
"""

from argparse import ArgumentParser, Namespace
from pathlib import Path
import statistics
import sys
import time

import numpy as np

from bench.support.command import Report, apart, at_least, byte_size, command, run, show
from flash_llm_ros.cli.progress import Steps
from flash_llm_ros.engine import Engine, EngineConfig

_PROMPT = 64


def measured(store: Path, budget: int, threads: int, counts: list[int],
             rounds: int) -> list[dict[str, float]]:
    """One record a number of tokens: milliseconds, also of processors, and bytes, of a pass."""
    engine = Engine.open(EngineConfig(store, budget, 'exact', threads=threads,
                                      prefill_chunk=max(_PROMPT, *counts),
                                      context_length=_PROMPT + max(counts) + 8))
    try:
        model = engine.model
        size = model.spec.embedding.vocab_size
        tokens = np.random.default_rng(1).integers(0, size, _PROMPT + max(counts))
        logits = np.zeros((max(counts), size), np.float32)
        model.forward(tokens[:_PROMPT], 0, True)
        found: dict[int, list[tuple[float, float, float]]] = {count: [] for count in counts}
        for _ in range(rounds + 1):         # the first one warms up
            for count, times in found.items():
                read = engine.stats()['flash_bytes']
                begin, used = time.perf_counter(), time.process_time()
                model.forward(tokens[_PROMPT:_PROMPT + count], _PROMPT, True, logits[:count])
                times.append(((time.perf_counter() - begin) * 1e3,
                              (time.process_time() - used) * 1e3,
                              engine.stats()['flash_bytes'] - read))
        return [{'threads': threads, 'tokens': count}
                | dict(zip(('ms', 'processor_ms', 'bytes'),
                           (statistics.median(column) for column in zip(*times[1:], strict=True)),
                           strict=True))
                for count, times in found.items()]
    finally:
        engine.close()


def measure(options: Namespace) -> Report:
    figures: list[dict[str, float]] = []
    with Steps() as steps:
        for done, threads in enumerate(options.threads, 1):
            figures += apart(measured, options.store, options.budget, threads, options.tokens,
                             options.rounds)
            steps('threads', done, len(options.threads))
    alone = {one['threads']: one['ms'] for one in figures if one['tokens'] == options.tokens[0]}
    show(('threads', 'tokens', 'ms', 'ms a token', 'ms of processors', 'MB read'),
         [(f'{one["threads"]:.0f}', f'{one["tokens"]:.0f}', f'{one["ms"]:.1f}',
           f'{one["ms"] / one["tokens"]:.1f}', f'{one["processor_ms"]:.1f}',
           f'{one["bytes"] / 1e6:.0f}') for one in figures])
    return Report(figures, '; '.join(
        f'{one["threads"]:.0f} threads, {one["tokens"]:.0f} tokens: '
        f'{one["ms"] / alone[one["threads"]]:.2f} times a pass of {options.tokens[0]}'
        for one in figures if one['tokens'] == options.tokens[-1]))


def parser() -> ArgumentParser:
    result = command(__doc__)
    result.add_argument('store', type=Path)
    result.add_argument('budget', type=byte_size, help="'2GB': more than the store has")
    result.add_argument('--tokens', type=at_least(1), nargs='+',
                        default=[1, 2, 3, 4, 5, 6, 8, 9, 12, 16])
    result.add_argument('--threads', type=at_least(1), nargs='+', default=[1, 2])
    result.add_argument('--rounds', type=at_least(1), default=9)
    return result


if __name__ == '__main__':
    sys.exit(run(parser(), measure))
