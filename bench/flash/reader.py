"""Our two readers beside fio: the same file, sizes, depths and patterns, in turns, in one run.

fio reads with io_uring, and with as many threads of preads as there are reads in flight. Ours also
compute each read's CRC32C, as the engine does; what that costs is shown by reading without it.
"""

from argparse import ArgumentParser
from dataclasses import asdict, dataclass
import json
import os
from pathlib import Path
import resource
from statistics import median
import sys
import time

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from bench.flash.fio import FIO, fio_rate
from flash_llm_ros import _native
from flash_llm_ros.store.errors import FlashLlmError

SIZES = [1 << 12, 1 << 14, 1 << 16, 1 << 18, 1 << 20]
DEPTHS = [1, 8, 32]
PATTERNS = ['random', 'sequential']
READERS = ['io_uring', 'threads']
GOAL = 0.9


@dataclass
class Case:
    """One reader at one size, depth and pattern; rates in bytes/s, medians over the rounds."""

    reader: str
    size: int
    depth: int
    pattern: str
    fio: float | None
    ours: float
    without_checksum: float
    cpu: float          # seconds of processor a byte of `ours` took

    @property
    def ratio(self) -> float | None:
        return None if self.fio is None else self.ours / self.fio


def measure(file: Path, reader: str, size: int, depth: int, pattern: str, seconds: float,
            rounds: int) -> Case:
    """All ways in turns, so that what else the machine does meets them alike."""
    rates: dict[str, list[float]] = {'fio': [], 'ours': [], 'without': [], 'cpu': []}
    for _ in range(rounds):
        if FIO is not None:
            rates['fio'].append(fio_rate(file, reader, size, depth, pattern, seconds))
        for name, checksum in (('ours', True), ('without', False)):
            before = _processor_seconds()
            found = _native.measure_reads(file, size, depth, seconds, pattern, reader,
                                          checksum=checksum)
            rates[name].append(found['bytes'] / found['seconds'])
            if checksum:
                rates['cpu'].append((_processor_seconds() - before) / found['bytes'])
    return Case(reader, size, depth, pattern, median(rates['fio']) if rates['fio'] else None,
                median(rates['ours']), median(rates['without']), median(rates['cpu']))


def _processor_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def table(cases: list[Case]) -> Table:
    result = Table('size', 'depth', 'pattern', 'reader', 'fio MB/s', 'ours MB/s', 'of fio',
                   'without CRC', 'CRC costs', 'CPU s/GB')
    for column in (*result.columns[:2], *result.columns[4:]):
        column.justify = 'right'
    for case in cases:
        ratio = case.ratio
        result.add_row(
            f'{case.size >> 10} KiB', str(case.depth), case.pattern, case.reader,
            '-' if case.fio is None else f'{case.fio / 1e6:.0f}', f'{case.ours / 1e6:.0f}',
            '-' if ratio is None else f'[{"green" if ratio >= GOAL else "red"}]{ratio:.2f}[/]',
            f'{case.without_checksum / 1e6:.0f}',
            f'{1 - case.ours / case.without_checksum:.0%}', f'{case.cpu * 1e9:.2f}')
    return result


def headline(cases: list[Case]) -> str:
    parts = []
    for reader in dict.fromkeys(case.reader for case in cases):
        mine = [case for case in cases if case.reader == reader]
        best = max(case.ours for case in mine) / 1e6
        ratios = [case.ratio for case in mine if case.ratio is not None]
        if not ratios:
            parts.append(f'{reader}: at most {best:.0f} MB/s')
            continue
        reached = sum(ratio >= GOAL for ratio in ratios)
        parts.append(f'{reader}: at most {best:.0f} MB/s; {median(ratios):.2f} of fio in the '
                     f'median, {GOAL:.0%} of it in {reached} of {len(ratios)} cases')
    return '; '.join(parts) + ('' if FIO else '; fio is missing (apt: fio), nothing to compare')


def main() -> int:
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('path', type=Path, help='a flash store, or any file of 64 MiB or more')
    parser.add_argument('--seconds', type=float, default=0.5, help='of each measurement')
    parser.add_argument('--rounds', type=int, default=3, help='medians are over so many')
    parser.add_argument('--size', type=int, action='append', help='bytes; several times for more')
    parser.add_argument('--depth', type=int, action='append')
    parser.add_argument('--pattern', choices=PATTERNS, action='append')
    parser.add_argument('--reader', choices=READERS, action='append')
    parser.add_argument('--json', type=Path)
    options = parser.parse_args()
    file = options.path / 'neurons.bin' if options.path.is_dir() else options.path
    if not file.is_file() or file.stat().st_size < 64 << 20:
        parser.error(f'{file} is not a file of 64 MiB or more')
    if FIO is None:
        print('fio is missing (apt: fio): only ours is measured', file=sys.stderr)
    wanted = [(reader, size, depth, pattern) for size in options.size or SIZES
              for depth in options.depth or DEPTHS for pattern in options.pattern or PATTERNS
              for reader in options.reader or READERS]
    load = os.getloadavg()[0]
    cases = []
    try:
        with Progress(console=Console(stderr=True)) as progress:
            task = progress.add_task('reading', total=len(wanted))
            for case in wanted:
                cases.append(measure(file, *case, options.seconds, options.rounds))
                progress.advance(task)
    except FlashLlmError as error:
        print(f'{parser.prog}: {error}', file=sys.stderr)
        return 1
    Console(width=110).print(table(cases))
    print(f'load average {load:.1f} before and {os.getloadavg()[0]:.1f} after, '
          f'{os.cpu_count()} processors; {time.strftime("%Y-%m-%d")}')
    if options.json:
        options.json.write_text(json.dumps(
            {'file_bytes': file.stat().st_size, 'load': load, 'processors': os.cpu_count(),
             'cases': [asdict(case) for case in cases]}, indent=2) + '\n')
    print(headline(cases))
    return 0


if __name__ == '__main__':
    sys.exit(main())
