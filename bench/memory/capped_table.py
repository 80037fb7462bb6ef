"""What bench/capped.py prints: runs put together, beside their floors."""

from dataclasses import dataclass
from pathlib import Path
import statistics
from typing import Any

from floors import Floors
import numpy as np
from rich.box import MARKDOWN
from rich.console import Console
from rich.table import Table

PEER = 'llama.cpp'
_COLUMNS = ('engine', 'tokens/s', 'gain', 'p50 ms', 'p95', 'p99', 'first token s', 'MB/token',
            'reads', 'CPU ms', 'peak RSS MB', 'OOM kills', 'device ms', 'memcpy ms',
            'left to win', 'perplexity')
_MB = 1e6


@dataclass(frozen=True)
class Side:
    """An engine as it is measured; sizes in bytes."""

    name: str
    mode: str               # exact, sparse or peer
    regime: str             # what its quality depends on
    interpreter: str
    worker: Path
    bare: int
    weights: int            # of the file or folder that it runs from
    job: dict[str, Any]


def summary(side: Side, allowance: int, threads: int, runs: list[dict[str, Any]], floors: Floors,
            quality: dict[str, Any] | None) -> dict[str, Any]:
    """One row. Times in seconds: percentiles over all tokens, medians over runs."""
    mine = [run for run in runs
            if (run['side'], run['allowance'], run['threads']) == (side.name, allowance, threads)]
    row = {'side': side.name, 'allowance': allowance, 'threads': threads, 'bare': side.bare,
           'oom_kills': sum(run.get('oom_kills', 0) for run in mine),
           'load': statistics.median(run['load'] for run in mine),
           'why_not': next((run[key] for run in mine for key in ('refused', 'failed')
                            if key in run), None)}
    good = [run for run in mine if 'token_seconds' in run]
    if not good:
        return row
    times = np.concatenate([run['token_seconds'] for run in good])
    row |= {name: float(np.percentile(times, point))
            for name, point in (('p50', 50), ('p95', 95), ('p99', 99))}

    def middle(name: str, per_token: bool = False) -> float:
        return statistics.median(run[name] / (len(run['token_seconds']) if per_token else 1)
                                 for run in good)

    row |= {
        'tokens_per_second': statistics.median(
            len(run['token_seconds']) / sum(run['token_seconds']) for run in good),
        'first_token': middle('first_token_seconds'), 'open': middle('open_seconds'),
        'bytes': middle('bytes', True), 'reads': middle('reads', True),
        'cpu_seconds': middle('cpu_seconds', True), 'peak': max(run['peak'] for run in good)}
    if side.name != PEER:
        row['passes'] = middle('passes', True)
        row |= floors.of(side.mode, threads, middle('active_fraction'), row['passes'],
                         row['bytes'], row['reads'])
        row['left_to_win'] = 1 / row['tokens_per_second'] / row['floor']
        row['perplexity'] = quality and quality['relative'].get(side.regime)
    return row


def show(rows: list[dict[str, Any]], floors: Floors) -> None:
    console = Console(width=190)
    for allowance, threads in dict.fromkeys((row['allowance'], row['threads']) for row in rows):
        mine = [row for row in rows if (row['allowance'], row['threads']) == (allowance, threads)]
        peer = next((row for row in mine if row['side'] == PEER), {})
        console.print(f'\nallowance {allowance / _MB:.0f} MB, {threads} thread'
                      f'{"s" * (threads > 1)}, load average '
                      f'{statistics.median(row["load"] for row in mine):.1f}')
        table = Table(box=MARKDOWN)
        for name in _COLUMNS:
            table.add_column(name, no_wrap=True)
        for row in mine:
            table.add_row(*_cells(row, peer.get('tokens_per_second')))
        console.print(table)
        for why in dict.fromkeys(row['why_not'] for row in mine if row['why_not']):
            names = ', '.join(row['side'] for row in mine if row['why_not'] == why)
            console.print(f'{names}: {why}', highlight=False)
    console.print(
        '\ngain: tokens/s beside llama.cpp. MB and reads per token: ours as the engine counts '
        'them, those of llama.cpp from /proc/self/io and its major page faults. Floor: the larger '
        f'of {floors.text}; left to win: time per token / floor. perplexity: relative to the '
        'GGUF in float32.', highlight=False)


def _cells(row: dict[str, Any], peer: float | None) -> list[str]:
    if 'p50' not in row:
        return [row['side'], '-', *[''] * 9, str(row['oom_kills'])]
    cells = [row['side'], f'{row["tokens_per_second"]:.2f}',
             f'{row["tokens_per_second"] / peer:.2f}' if peer else '',
             *(f'{row[name] * 1e3:.1f}' for name in ('p50', 'p95', 'p99')),
             f'{row["first_token"]:.2f}', f'{row["bytes"] / _MB:.1f}', f'{row["reads"]:.0f}',
             f'{row["cpu_seconds"] * 1e3:.0f}', f'{row["peak"] / _MB:.0f}',
             str(row['oom_kills'])]
    if 'floor' not in row:
        return cells
    return [*cells, f'{row["device_seconds"] * 1e3:.1f}', f'{row["copy_seconds"] * 1e3:.1f}',
            f'{row["left_to_win"]:.2f}x',
            '' if row['perplexity'] is None else f'{row["perplexity"]:.3f}']


def headline(model: str, rows: list[dict[str, Any]]) -> str:
    """The line for people in a hurry: each regime's gain, or its speed without a peer."""
    peers = {(row['allowance'], row['threads']): row.get('tokens_per_second')
             for row in rows if row['side'] == PEER}
    parts = []
    for allowance, threads in dict.fromkeys((row['allowance'], row['threads']) for row in rows):
        figures = []
        for row in rows:
            if (row['allowance'], row['threads']) != (allowance, threads) or row['side'] == PEER:
                continue
            speed, peer = row.get('tokens_per_second'), peers.get((allowance, threads))
            figures.append(f'{row["side"]} ' + ('no run' if speed is None
                                                else f'{speed / peer:.2f}x' if peer
                                                else f'{speed:.2f} tokens/s'))
        parts.append(f'{allowance / _MB:.0f} MB, {threads} thr.: {", ".join(figures)}')
    return f'{model} against llama.cpp: {"; ".join(parts)}'
