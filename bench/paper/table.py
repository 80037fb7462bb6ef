"""The tables of "LLM in a flash" for OPT-6.7B with planted neuron activity, on this disk: what each
technique is worth.

Builds files of the shape of OPT-6.7B in fp16 with random weights (23 GB, in --folder, where they
stay; without it in a temporary folder) and computes tokens with one technique after the other, in
rounds. Everything is read with direct I/O. The window yields by the core's policy, not by the
paper's.

I/O ms is the time during which reads are under way, beside what the device needs for as many reads
of that size when nothing else runs; reading ahead spreads it over the token on purpose. In the
end-to-end table I/O is only the time for which computing stood still; memory management is finding
slots and queueing reads.
"""

from argparse import ArgumentParser, Namespace
from dataclasses import asdict, dataclass, field
import os
from pathlib import Path
import sys
import tempfile
from typing import Any

import numpy as np

from bench.paper.opt_files import OPT_6_7B, SMALL, OptFiles, describe, prepare
from bench.paper.opt_model import OptModel, Technique, techniques
from bench.paper.planted_activity import PlantedActivity
from bench.support.command import Report, at_least, command, run, show
from flash_llm_ros import _native
from flash_llm_ros.cli.progress import Steps

# Of the paper (Table 2, and the CPU line of Table 3): DRAM GB, flash GB per token, GB/s, I/O ms.
PAPER_IO = {'naive': (0, 13.4, 6.10, 2196), 'hybrid': (6.7, 6.7, 6.10, 1090),
            '+ predictor': (4.8, 0.9, 1.25, 738), '+ window': (6.5, 0.2, 1.25, 164),
            '+ bundling': (6.5, 0.2, 2.25, 87)}
# I/O, memory management, compute, total in ms, gain; the paper has no parts for the naive one.
PAPER_TOTAL = {'naive': (None, None, None, 3182, None), '+ bundling': (105, 58, 506, 669, 4.8)}
_NO_PAPER = (None,) * 4
_WARM_UP = 10               # tokens until the window is full, and has forgotten how it was filled
_DEPTHS = (8, 32, 64)
_FLOOR_SECONDS = 0.3
_BLOCK = 512


def floor_rate(files: OptFiles, technique: Technique, token: dict[str, float]) -> float:
    """Bytes per second of the device for reads of that token's mean size, nothing else running."""
    apart = technique.predicted and not technique.bundled
    path = (files.rows if apart else files.bundled).path
    size = max(1, round(token['flash_bytes'] / token['flash_reads'] / _BLOCK)) * _BLOCK
    pattern = 'random' if technique.predicted else 'sequential'
    found = [_native.measure_reads(str(path), size, depth, _FLOOR_SECONDS, pattern, checksum=False)
             for depth in _DEPTHS]
    return max(each['bytes'] / each['seconds'] for each in found)


@dataclass
class Row:
    """What was measured of a technique: OptModel.token's figures, and the device's rates."""

    technique: Technique
    tokens: list[dict[str, float]] = field(default_factory=list)
    floor_rates: list[float] = field(default_factory=list)
    dram_bytes: int = 0

    def schedule(self, tokens: int) -> tuple[int, int]:
        """Tokens to warm up with and to measure: all are alike where nothing is predicted."""
        if not self.technique.predicted:
            return 1, 1
        return (_WARM_UP if self.technique.kept else 1), tokens


def rows_of(files: OptFiles, rounds: int, tokens: int, steps: Steps,
            **model_options: Any) -> list[Row]:
    """All techniques in turn, again and again."""
    planted = PlantedActivity(files.shape.layers, files.shape.ffn)
    activity = [planted.next() for _ in range(_WARM_UP + tokens)]
    most = max(int(token.predicted.sum(axis=1).max()) for token in activity)
    rows = [Row(technique) for technique in techniques(files)]
    done, total = 0, rounds * sum(sum(row.schedule(tokens)) for row in rows)
    for row in rows * rounds:
        warm_up, count = row.schedule(tokens)
        model = OptModel(files, row.technique, most_predicted=most, **model_options)
        try:
            if not model.direct:
                raise OSError(f'{files.bundled.path.parent} is on a file system without direct '
                              'I/O, so that the page cache would be measured; name another '
                              'folder with --folder')
            hidden = np.ones((1, files.shape.dim), np.float32)
            for index in range(-warm_up, count):
                token = model.token(hidden, activity[_WARM_UP + index])
                if index >= 0:
                    row.tokens.append(token)
                done += 1
                steps('tokens', done, total)
            row.dram_bytes = model.dram_bytes
        finally:
            model.close()
        row.floor_rates.append(floor_rate(files, row.technique, token))
    return rows


def figures(row: Row) -> dict[str, Any]:
    """Medians and p95 of a row: bytes, and milliseconds per token."""
    def over(name: str, scale: float = 1.0) -> np.ndarray:
        return np.array([token[name] for token in row.tokens]) * scale

    total, wait, claim = over('seconds', 1e3), over('wait_ns', 1e-6), over('claim_ns', 1e-6)
    read = over('read_ns', 1e-6)
    flash, rate = float(np.median(over('flash_bytes'))), float(np.median(row.floor_rates))
    return {
        'name': row.technique.name, 'tokens': len(row.tokens),
        'dram_bytes': row.dram_bytes, 'flash_bytes': flash,
        'flash_reads': float(np.median(over('flash_reads'))),
        'io_ms': float(np.median(read)), 'io_p95_ms': float(np.percentile(read, 95)),
        'floor_ms': 1e3 * flash / rate, 'wait_ms': float(np.median(wait)),
        'management_ms': float(np.median(claim)),
        'compute_ms': float(np.median(total - wait - claim)),
        'total_ms': float(np.median(total)), 'total_p95_ms': float(np.percentile(total, 95))}


def print_tables(found: list[dict[str, Any]]) -> None:
    rows = []
    for row in found:
        dram, flash, rate, io = (_beside(paper) for paper in PAPER_IO.get(row['name'], _NO_PAPER))
        rows.append((
            row['name'], f'{row["dram_bytes"] / 1e9:.2f}{dram}',
            f'{row["flash_bytes"] / 1e9:.2f}{flash}', f'{row["flash_reads"]:.0f}',
            f'{row["flash_bytes"] / row["io_ms"] / 1e6:.2f}{rate}',
            f'{row["io_ms"]:.0f}{io}', f'{row["io_p95_ms"]:.0f}', f'{row["floor_ms"]:.0f}',
            f'{row["io_ms"] / row["floor_ms"]:.2f}'))
    show(('per token', 'DRAM GB', 'flash GB', 'reads', 'GB/s', 'I/O ms', 'p95',
          'device alone ms', 'ratio'), rows, 'Flash I/O (paper, Table 2: in brackets)')
    rows = []
    for row in found:
        *paper, paper_gain = PAPER_TOTAL.get(row['name'], (*_NO_PAPER, None))
        parts = [f'{row[name]:.0f}{_beside(theirs)}' for name, theirs in
                 zip(('wait_ms', 'management_ms', 'compute_ms', 'total_ms'), paper, strict=True)]
        gain = found[0]['total_ms'] / row['total_ms']
        rows.append((row['name'], *parts, f'{row["total_p95_ms"]:.0f}',
                     f'{gain:.1f}x{_beside(paper_gain)}'))
    show(('ms per token', 'waiting for I/O', 'memory management', 'compute', 'total', 'p95',
          'gain'), rows, 'End to end (paper, Table 3, CPU: in brackets)')


def _beside(figure: float | None) -> str:
    return '' if figure is None else f' ({figure})'


def measure(options: Namespace) -> Report:
    if options.folder:
        options.folder.mkdir(parents=True, exist_ok=True)
        return measured_in(options.folder, options)
    with tempfile.TemporaryDirectory(prefix='paper_table_') as folder:
        return measured_in(Path(folder), options)


def measured_in(folder: Path, options: Namespace) -> Report:
    """Write the files where they are missing, and measure."""
    files = describe(folder, SMALL if options.small else OPT_6_7B)
    with Steps() as steps:
        prepare(files, steps)
        rows = rows_of(files, options.rounds, options.tokens, steps, threads=options.threads,
                       reader=options.reader, reads_in_flight=options.reads_in_flight)
    found = [figures(row) for row in rows]
    print_tables(found)
    print(f'{files.shape.parameters / 1e9:.2f} billion parameters in fp16, {options.threads} '
          'threads')
    naive, theirs, ours = (next(row for row in found if row['name'] == name)
                           for name in ('naive', '+ bundling', '+ read ahead'))
    return Report(
        {'shape': asdict(files.shape), 'parameters': files.shape.parameters,
         'threads': options.threads,
         'rows': [one | {'samples': row.tokens, 'floor_rates': row.floor_rates}
                  for one, row in zip(found, rows, strict=True)]},
        f'{naive["total_ms"]:.0f} -> {theirs["total_ms"]:.0f} ms per token, '
        f'{naive["total_ms"] / theirs["total_ms"]:.1f}x (paper: 4.8x), reading ahead '
        f'{naive["total_ms"] / ours["total_ms"]:.1f}x; I/O takes '
        f'{theirs["io_ms"] / theirs["floor_ms"]:.2f}x what the device needs for those reads')


def parser() -> ArgumentParser:
    result = command(__doc__)
    result.add_argument('--small', action='store_true', help='0.4 GB instead of 23 GB')
    result.add_argument('--folder', type=Path, help='where the files lie and stay')
    result.add_argument('--rounds', type=at_least(1), default=3)
    result.add_argument('--tokens', type=at_least(1), default=10, help='measured in a round')
    result.add_argument('--threads', type=at_least(1), default=os.cpu_count(),
                        help='that compute')
    result.add_argument('--reader', choices=('auto', 'io_uring', 'threads'), default='auto')
    result.add_argument('--reads-in-flight', type=at_least(1), default=32)
    return result


if __name__ == '__main__':
    sys.exit(run(parser(), measure))
