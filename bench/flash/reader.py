"""Our two readers beside fio: the same file, sizes, depths and patterns, in turns, in one run; and
what computing each read's CRC32C costs, as the engine does.

fio reads with io_uring, and with as many threads of preads as there are reads in flight.
"""

from argparse import ArgumentParser, Namespace
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
import sys

from bench.flash.fio import FIO, fio_rate
from bench.support.command import Report, at_least, command, run, show
from bench.support.process_figures import cpu_seconds
from flash_llm_ros import _native
from flash_llm_ros.cli.progress import Steps

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


def measured(file: Path, reader: str, size: int, depth: int, pattern: str, seconds: float,
             rounds: int) -> Case:
    """All ways in turns, so that what else the machine does meets them alike."""
    rates: dict[str, list[float]] = {'fio': [], 'ours': [], 'without': [], 'cpu': []}
    for _ in range(rounds):
        if FIO is not None:
            rates['fio'].append(fio_rate(file, reader, size, depth, pattern, seconds))
        for name, checksum in (('ours', True), ('without', False)):
            before = cpu_seconds()
            found = _native.measure_reads(file, size, depth, seconds, pattern, reader,
                                          checksum=checksum)
            rates[name].append(found['bytes'] / found['seconds'])
            if checksum:
                rates['cpu'].append((cpu_seconds() - before) / found['bytes'])
    return Case(reader, size, depth, pattern, median(rates['fio']) if rates['fio'] else None,
                median(rates['ours']), median(rates['without']), median(rates['cpu']))


def print_cases(cases: list[Case]) -> None:
    show(('size', 'depth', 'pattern', 'reader', 'fio MB/s', 'ours MB/s', 'of fio', 'without CRC',
          'CRC costs', 'CPU s/GB'),
         [(f'{case.size >> 10} KiB', str(case.depth), case.pattern, case.reader,
           '-' if case.fio is None else f'{case.fio / 1e6:.0f}', f'{case.ours / 1e6:.0f}',
           '-' if case.ratio is None else f'{case.ratio:.2f}',
           f'{case.without_checksum / 1e6:.0f}', f'{1 - case.ours / case.without_checksum:.0%}',
           f'{case.cpu * 1e9:.2f}') for case in cases])


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


def measure(options: Namespace) -> Report:
    file = options.path / 'neurons.bin' if options.path.is_dir() else options.path
    if not file.is_file() or file.stat().st_size < 64 << 20:
        raise ValueError(f'{file} is not a file of 64 MiB or more')
    wanted = [(reader, size, depth, pattern) for size in options.size for depth in options.depth
              for pattern in options.pattern for reader in options.reader]
    cases = []
    with Steps() as steps:
        for case in wanted:
            cases.append(measured(file, *case, options.seconds, options.rounds))
            steps('cases', len(cases), len(wanted))
    print_cases(cases)
    return Report({'file_bytes': file.stat().st_size, 'cases': [asdict(case) for case in cases]},
                  headline(cases))


def parser() -> ArgumentParser:
    result = command(__doc__)
    result.add_argument('path', type=Path, help='a flash store, or any file of 64 MiB or more')
    result.add_argument('--seconds', type=float, default=0.5, help='of each measurement')
    result.add_argument('--rounds', type=at_least(1), default=3, help='medians are over so many')
    result.add_argument('--size', type=at_least(512), nargs='+', default=SIZES, help='bytes')
    result.add_argument('--depth', type=at_least(1), nargs='+', default=DEPTHS)
    result.add_argument('--pattern', choices=PATTERNS, nargs='+', default=PATTERNS)
    result.add_argument('--reader', choices=READERS, nargs='+', default=READERS)
    return result


if __name__ == '__main__':
    sys.exit(run(parser(), measure))
