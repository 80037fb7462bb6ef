"""What reading a layer's foreseen bundles ahead is worth, with a calibrated ReLU store.

    python bench/read_ahead.py STORE BUDGET... [--threads 1] [--tokens 48] [--rounds 3]
        [--json PATH]

The same answer again and again from one engine, in turns with and without `read_ahead`: medians
over all tokens but the first of each answer. The text must not differ by one byte.
"""

from argparse import ArgumentParser, Namespace
import json
import os
from pathlib import Path
import statistics
import sys
import time
from typing import Any

from rich.box import MARKDOWN
from rich.console import Console
from rich.table import Table

from flash_llm_ros.cli.progress import Steps
from flash_llm_ros.engine import Engine, EngineConfig, GenerationRequest
from flash_llm_ros.engine.byte_size import parse_byte_size
from flash_llm_ros.store.errors import FlashLlmError

PROMPT = 'The robot went up the mountain, and'
_COUNTED = ('flash_bytes', 'flash_reads', 'wait_ns', 'hits', 'misses', 'prefetched',
            'prefetch_used')


def answer(engine: Engine, tokens: int) -> tuple[list[int], list[dict[str, float]]]:
    """The tokens, and for each but the first what the core counted and the seconds it took."""
    generation = engine.start(GenerationRequest(PROMPT, raw=True, max_tokens=tokens))
    records: list[dict[str, float]] = []
    before: dict[str, float] | None = None
    for _ in generation:
        stats = engine.stats()
        now = {**{name: stats[name] for name in _COUNTED}, 'seconds': time.perf_counter()}
        if before is not None:
            records.append({name: now[name] - before[name] for name in now})
        before = now
    return generation.tokens, records


def measure(options: Namespace, budget: int, steps: Steps) -> dict[str, Any]:
    """Medians a token without and with reading ahead, and the share of misses foreseen."""
    engine = Engine.open(EngineConfig(options.store, budget, 'sparse', threads=options.threads,
                                      reader=options.reader, read_ahead=True))
    try:
        answer(engine, options.tokens)      # fills the window
        texts: list[list[int]] = []
        records: dict[bool, list[dict[str, float]]] = {False: [], True: []}
        for number in range(2 * options.rounds):
            ahead = number % 2 == 1
            engine.model.feed_forward.read_ahead = ahead
            text, found = answer(engine, options.tokens)
            texts.append(text)
            records[ahead] += found
            steps('answers', number + 1, 2 * options.rounds)
        if any(text != texts[0] for text in texts):
            raise RuntimeError('reading ahead changed the text')
        middle = {ahead: {name: statistics.median(each[name] for each in found)
                          for name in found[0]} for ahead, found in records.items()}
        total = {name: sum(each[name] for each in records[True]) for name in _COUNTED}
        return {'budget': budget, 'off': middle[False], 'on': middle[True],
                'foreseen': total['prefetch_used'] / (total['prefetch_used'] + total['misses']),
                'in_vain': 1 - total['prefetch_used'] / max(1, total['prefetched'])}
    finally:
        engine.close()


def table(rows: list[dict[str, Any]]) -> Table:
    found = Table('budget MB', 'read ahead', 'ms a token', 'waiting ms', 'KB read', 'reads',
                  'misses', 'foreseen', 'read in vain', box=MARKDOWN)
    for row in rows:
        for name in ('off', 'on'):
            each = row[name]
            shares = ([f'{row["foreseen"]:.0%}', f'{row["in_vain"]:.0%}'] if name == 'on' else
                      ['-', '-'])
            found.add_row(f'{row["budget"] / 1e6:.0f}', name, f'{each["seconds"] * 1e3:.1f}',
                          f'{each["wait_ns"] / 1e6:.1f}', f'{each["flash_bytes"] / 1e3:.0f}',
                          f'{each["flash_reads"]:.0f}', f'{each["misses"]:.0f}', *shares)
    return found


def main() -> int:
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('store', type=Path)
    parser.add_argument('budget', nargs='+', help='DRAM, such as 80MB')
    parser.add_argument('--threads', type=int, default=1)
    parser.add_argument('--tokens', type=int, default=48)
    parser.add_argument('--rounds', type=int, default=3)
    parser.add_argument('--reader', choices=('auto', 'io_uring', 'threads'), default='auto')
    parser.add_argument('--json', type=Path)
    options = parser.parse_args()
    load = os.getloadavg()[0]
    try:
        with Steps() as steps:
            rows = [measure(options, parse_byte_size('BUDGET', budget), steps)
                    for budget in options.budget]
    except (FlashLlmError, ValueError) as error:
        print(f'{parser.prog}: {error}', file=sys.stderr)
        return 1
    Console(width=120).print(table(rows))
    print(f'load average {load:.1f} before and {os.getloadavg()[0]:.1f} after, {os.cpu_count()} '
          f'processors, {options.threads} threads; {time.strftime("%Y-%m-%d")}')
    if options.json:
        options.json.write_text(json.dumps({'store': str(options.store), 'load': load,
                                            'rows': rows}, indent=2) + '\n')
    print('; '.join(
        f'{row["budget"] / 1e6:.0f} MB: {row["off"]["seconds"] * 1e3:.1f} -> '
        f'{row["on"]["seconds"] * 1e3:.1f} ms a token, waiting '
        f'{row["off"]["wait_ns"] / 1e6:.1f} -> {row["on"]["wait_ns"] / 1e6:.1f} ms, bytes '
        f'{row["on"]["flash_bytes"] / max(1, row["off"]["flash_bytes"]):.2f}x' for row in rows))
    return 0


if __name__ == '__main__':
    sys.exit(main())
