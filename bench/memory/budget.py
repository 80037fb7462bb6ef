"""Does the engine keep its DRAM budget? Runs it in a memory cgroup and measures.

    python -m bench.memory.budget [--store models/smollm2.store] [--budget 96MB ...] [--structured]
        [--json PATH]

The cgroup's limit is the bare process (imports done, no model open) + budget + 32 MiB. Printed
are the peak resident set above the bare process, OOM kills, and how much the page cache of the
store grew during generation.
"""

from argparse import ArgumentParser
import json
from pathlib import Path
import subprocess
import sys

from rich.console import Console
from rich.table import Table

from bench.support.memory_cgroup import MemoryCgroup, memory_cgroup
from flash_llm_ros.engine.byte_size import parse_byte_size

ROOT = Path(__file__).parents[2]
LIMIT_SLACK = 32 << 20
PEAK_SLACK = 16 << 20
_MB = 1e6


def run_worker(store: Path, budget: int, mode: str, tokens: int,
               group: MemoryCgroup | None = None, structured: bool = False) -> dict:
    """Run the worker, from its first instruction on in `group`; raises on a non-zero exit."""
    command = [sys.executable, '-m', 'bench.memory.budget_worker', str(store.resolve()),
               str(budget), mode, str(tokens), *['structured'] * structured]
    if group is not None:
        # The shell joins the group before it becomes the worker, so that every page counts.
        join = f'echo $$ > {group.path}/cgroup.procs && exec "$@"'
        command = ['sh', '-c', join, 'sh', *command]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600,
                          cwd=ROOT)
    if done.returncode:
        raise RuntimeError(f'the worker ended with {done.returncode}: {done.stderr.strip()}')
    return json.loads(done.stdout.splitlines()[-1])


def measure(store: Path, budget: int, mode: str, tokens: int, structured: bool = False) -> dict:
    """Figures of one run under its cap; sizes in bytes."""
    bare = run_worker(store, budget, 'bare', tokens)['bare']
    with memory_cgroup() as group:
        group.limit(bare + budget + LIMIT_SLACK)
        figures = run_worker(store, budget, mode, tokens, group, structured)
        figures['oom_kills'] = group.oom_kills()
    figures |= {'bare': bare, 'budget': budget, 'mode': mode, 'limit': bare + budget + LIMIT_SLACK,
                'above_bare': figures['peak'] - bare}
    return figures


def main() -> int:
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--store', type=Path, default=Path('models/smollm2.store'))
    parser.add_argument('--budget', action='append', help='may be given several times')
    parser.add_argument('--tokens', type=int, default=100)
    parser.add_argument('--structured', action='store_true', help='answer under constraints, too')
    parser.add_argument('--json', type=Path)
    options = parser.parse_args()
    rows = [measure(options.store, parse_byte_size('budget', budget), mode, options.tokens,
                    options.structured)
            for budget in options.budget or ('96MB', '128MB') for mode in ('exact', 'sparse')]
    table = Table('budget', 'mode', 'bare', 'cap', 'peak above bare', 'OOM kills',
                  'page cache growth', 'MB/token', 'tokens/s')
    for row in rows:
        table.add_row(f'{row["budget"] / _MB:.0f} MB', row['mode'], f'{row["bare"] / _MB:.1f} MB',
                      f'{row["limit"] / _MB:.1f} MB', f'{row["above_bare"] / _MB:.1f} MB',
                      str(row['oom_kills']), f'{row["cache_growth"]} B',
                      f'{row["flash_bytes"] / row["tokens"] / _MB:.1f}',
                      f'{row["tokens_per_second"]:.1f}')
    Console(width=110).print(table)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2) + '\n')
    worst = max(row['above_bare'] - row['budget'] for row in rows)
    print(f'peak above the bare process is at most budget {worst / _MB:+.1f} MB '
          f'({PEAK_SLACK / _MB:.1f} MB allowed); '
          f'{sum(row["oom_kills"] for row in rows)} OOM kills')
    return 0


if __name__ == '__main__':
    sys.exit(main())
