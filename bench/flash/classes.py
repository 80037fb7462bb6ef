"""Our engine and llama.cpp, both under one memory cap, from flash as robots have it, in one table:
tokens per second, first token, bytes and reads by class of flash.

It is this machine's disk, slowed down by the kernel to what such a device gives at best
(`flash_llm_ros/store/flash_classes.py` names the sources): no card or module was measured. Runs are
those of bench.memory.capped, which says what the roof is.
"""

from argparse import ArgumentParser, Namespace
from itertools import product
from pathlib import Path
import sys
from typing import Any

from bench.memory.capped import PEER, PROMPT, Case, one_run, opened_store, sides_of, summary
from bench.support.command import Report, at_least, byte_size, command, run, show
from flash_llm_ros.cli.progress import Steps
from flash_llm_ros.store.flash_classes import FLASH_CLASSES


def print_rows(rows: list[dict[str, Any]]) -> str:
    """One table; returns the headline."""
    show(('flash', 'MB/s', 'reads/s', 'engine', 'tokens/s', 'gain', 'roof', 'first token s',
          'tokens/pass', 'MB/token', 'reads/token', 'peak RSS MB'),
         [_cells(row, rows) for row in rows])
    for row in rows:
        if row['why_not']:
            print(f'{row["flash"]}, {row["side"]}: {row["why_not"]}')
    best = {kind: max((row for row in rows if row['flash'] == kind and row['side'] != PEER),
                      key=lambda row: row.get('tokens_per_second', 0.0))
            for kind in dict.fromkeys(row['flash'] for row in rows)}
    return 'a throttled disk: ' + ', '.join(
        f'{kind} {row["side"]} {row.get("tokens_per_second", 0.0):.2f} tokens/s'
        for kind, row in best.items())


def _cells(row: dict[str, Any], rows: list[dict[str, Any]]) -> list[str]:
    kind = FLASH_CLASSES[row['flash']]
    cells = [row['flash'], f'{kind.bytes_per_second / 1e6:.0f}', str(kind.reads_per_second),
             row['side']]
    if 'p50' not in row:
        return [*cells, '-', *[''] * 7]
    peer = next((other.get('tokens_per_second') for other in rows
                 if (other['flash'], other['side']) == (row['flash'], PEER)), None)
    speed = row['tokens_per_second']
    return [*cells, f'{speed:.2f}', f'{speed / peer:.1f}' if peer else '',
            f'{row["roof"]:.2f}', f'{row["first_token"]:.1f}', f'{row["tokens_per_pass"]:.2f}',
            f'{row["bytes"] / 1e6:.1f}', f'{row["reads"]:.0f}', f'{row["peak"] / 1e6:.0f}']


def measure(options: Namespace) -> Report:
    sides = sides_of(options, opened_store(options))
    cases = [Case(options.allowance, options.threads, kind) for kind in options.classes]
    found: list[dict[str, Any]] = []
    with Steps() as steps:
        for done, (case, side) in enumerate(pairs := list(product(cases, sides)), 1):
            found.append(summary([one_run(side, sides, case, options.timeout)
                                  for _ in range(options.rounds)]))
            steps('engines and classes', done, len(pairs))
    return Report(found, f'{options.model.name} in {options.allowance / 1e6:.0f} MB, '
                  + print_rows(found))


def parser() -> ArgumentParser:
    result = command(__doc__)
    result.add_argument('model', type=Path, help='a .gguf file')
    result.add_argument('allowance', type=byte_size, help="memory beside the bare process: '560MB'")
    result.add_argument('--store', type=Path, help='the flash store of that model (default: '
                        'beside it, with int4 neurons; made when it is missing)')
    result.add_argument('--draft', type=Path, metavar='STORE',
                        help='the store of a draft model: one more engine')
    result.add_argument('--classes', choices=FLASH_CLASSES, nargs='+', default=[*FLASH_CLASSES])
    result.add_argument('--threads', type=at_least(1), default=1)
    result.add_argument('--prompt', metavar='TEXT', default=PROMPT, help='(default: a story)')
    result.add_argument('--tokens', type=at_least(3), default=16, help='new tokens of each run')
    result.add_argument('--rounds', type=at_least(1), default=1, help='runs of each engine')
    result.add_argument('--timeout', type=float, default=900.0, help='seconds for one run')
    result.set_defaults(context=512, chunk=64, repack=False)
    return result


if __name__ == '__main__':
    sys.exit(run(parser(), measure))
