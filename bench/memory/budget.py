"""Does the engine keep its DRAM budget? Runs it in a memory cgroup whose limit is the bare process
(imports done, no model open) + budget + 4 MiB, and measures its peak and the page cache.
"""

from argparse import ArgumentParser, Namespace
from pathlib import Path
import sys
from typing import Any

from bench.support.command import Report, at_least, byte_size, command, run, show
from bench.support.worker import bare_bytes, run_capped
from flash_llm_ros.store.flash_store import FlashStore

WORKER = 'bench.memory.budget_worker'
SLACK = 4 << 20     # bytes that the process may take beside bare and budget


def job_of(store: Path, budget: int, mode: str, tokens: int,
           structured: bool = False, threads: int = 1) -> dict[str, Any]:
    """What the worker shall do."""
    return {'store': str(store.resolve()), 'budget': budget, 'mode': mode, 'tokens': tokens,
            'structured': structured, 'threads': threads}


def figures_of(job: dict[str, Any]) -> dict[str, Any]:
    """Figures of one job under its cap; sizes in bytes. RuntimeError where it fails."""
    bare = bare_bytes(WORKER)
    limit = bare + job['budget'] + SLACK
    found = run_capped(WORKER, job, limit)
    if 'failed' in found:
        raise RuntimeError(found['failed'])
    return {**job, **found, 'bare': bare, 'limit': limit, 'above_bare': found['peak'] - bare}


def measure(options: Namespace) -> Report:
    gated = FlashStore.open(options.store).manifest.calibration is not None
    rows = [figures_of(job_of(options.store, budget, mode, options.tokens, options.structured,
                              threads))
            for budget in options.budget or (96_000_000, 128_000_000)
            for mode in ('exact', *['gated'] * gated)
            for threads in options.threads or (1, 2, 4)]
    show(('budget', 'mode', 'threads', 'bare', 'cap', 'peak above bare', 'OOM kills',
          'page cache growth', 'MB/token', 'tokens/s'),
         [(f'{row["budget"] / 1e6:.0f} MB', row['mode'], str(row['threads']),
           f'{row["bare"] / 1e6:.1f} MB', f'{row["limit"] / 1e6:.1f} MB',
           f'{row["above_bare"] / 1e6:.1f} MB', str(row['oom_kills']), f'{row["cache_growth"]} B',
           f'{row["flash_bytes"] / row["generated"] / 1e6:.1f}',
           f'{row["tokens_per_second"]:.1f}') for row in rows])
    worst = max(row['above_bare'] - row['budget'] for row in rows)
    return Report(rows, f'peak above the bare process is at most budget {worst / 1e6:+.1f} MB '
                  f'({SLACK / 1e6:.1f} MB allowed); '
                  f'{sum(row["oom_kills"] for row in rows)} OOM kills')


def parser() -> ArgumentParser:
    result = command(__doc__)
    result.add_argument('--store', type=Path, default=Path('models/smollm2.store'))
    result.add_argument('--budget', type=byte_size, action='append',
                        help='may be given several times (default: 96MB and 128MB)')
    result.add_argument('--threads', type=at_least(1), action='append',
                        help='may be given several times (default: 1, 2 and 4)')
    result.add_argument('--tokens', type=at_least(1), default=100)
    result.add_argument('--structured', action='store_true', help='answer under constraints, too')
    return result


if __name__ == '__main__':
    sys.exit(run(parser(), measure))
