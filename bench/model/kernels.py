"""How fast each kernel is on one thread, beside reading the same bytes from huge pages, the roof
(by two threads at once, too: what a second thread can gain for one token), and NumPy in float32,
whose rows are 2 to 7 times the bytes.

Calls the core as the engine does, with everything pinned in DRAM: more than fits into the
processor's own caches. One token: gigabytes of encoded rows per second, of dot products and of
bundles of three rows, two of which are dotted and one is added; several tokens: thousand millions
of multiplications and additions per second (GMAC/s). Times are the thread's on a processor, so that
other processes disturb less.
"""

from argparse import ArgumentParser, Namespace
from dataclasses import dataclass
import os
from pathlib import Path
import sys
from tempfile import TemporaryDirectory
import time

os.environ['OPENBLAS_NUM_THREADS'] = '1'    # before NumPy is imported

import numpy as np

from bench.support.command import Report, at_least, command, run, show
from bench.support.memory_roof import MemoryRoof
from flash_llm_ros import _native
from flash_llm_ros.cli.progress import Steps
from flash_llm_ros.store.checksum import group_checksums
from flash_llm_ros.store.codec import row_codec
from flash_llm_ros.store.errors import FlashLlmError

CODECS = ('int8', 'int4', 'mxfp4', 'fp16')
_KERNELS = ('avx512vnni', 'avx512', 'avxvnni', 'avx2', 'neondot', 'neon', 'plain')
_GROUP_BYTES = 65536
_NUMPY_BYTES = 128e6        # of float32
_ROOF, _TWICE = 'reading', 'reading, 2 threads'
_TRIES = 20                 # until two threads are on processors at the same time
_RANDOM_ROWS = 512          # repeated to fill the file


@dataclass
class Rows:
    """A neuron file of random rows, and how many."""

    path: Path
    codec: str
    dim: int
    groups: int
    per_group: int
    row_bytes: int

    @property
    def count(self) -> int:
        return self.groups * self.per_group

    @property
    def bytes(self) -> int:
        return self.count * self.row_bytes

    @property
    def bundles(self) -> int:
        """Of three rows, in the same groups."""
        return self.groups * (self.per_group // 3)

    @classmethod
    def write(cls, folder: Path, codec_name: str, dim: int, size: int) -> 'Rows':
        codec = row_codec(codec_name, dim)
        rng = np.random.default_rng(dim)
        encoded = codec.encode(rng.standard_normal((_RANDOM_ROWS, dim)).astype(np.float32) / 50)
        per_group = (_GROUP_BYTES - 4) // codec.row_bytes
        groups = max(1, size // (per_group * codec.row_bytes))
        path = folder / f'{codec_name}-{dim}.bin'
        with open(path, 'wb') as file:
            for group in range(groups):
                rows = encoded[(np.arange(per_group) + group * per_group) % _RANDOM_ROWS]
                body = rows.tobytes().ljust(_GROUP_BYTES - 4, b'\0')
                content = np.frombuffer(body, np.uint8)[None]
                file.write(body + group_checksums(0, group, content).astype('<u4').tobytes())
        return cls(path, codec_name, dim, groups, per_group, codec.row_bytes)

    def open(self, kernels: str) -> _native.NeuronCore:
        """Everything pinned, computed by these kernels; ValueError if they cannot run here."""
        os.environ['FLASH_LLM_ROS_KERNELS'] = kernels
        core = _native.NeuronCore(self.path, _GROUP_BYTES, self.groups, self.dim, 2 * self.groups,
                                  threads=1, lock_memory=False)
        core.add_section(0, self.count, self.per_group, 1, self.codec)
        core.add_section(0, self.bundles, self.per_group // 3, 3, self.codec)
        core.pin(0, self.groups)
        core.pin(1, self.groups)
        return core


def seconds(call, *arguments) -> float:
    begin = time.thread_time()
    call(*arguments)
    return time.thread_time() - begin


def runnable_kernels(rows: Rows, wanted: list[str]) -> list[str]:
    found = []
    for name in wanted:
        try:
            rows.open(name).close()
            found.append(name)
        except (ValueError, FlashLlmError) as error:
            if 'FLASH_LLM_ROS_KERNELS' not in str(error):
                raise
    return found


def times_of(rows: Rows, kernels: list[str], tokens: int, rounds: int) -> dict[str, dict]:
    """Median seconds for all rows: what -> {who -> seconds}."""
    rng = np.random.default_rng(1)
    x = rng.standard_normal((tokens, rows.dim)).astype(np.float32)
    dots, out = np.zeros((tokens, rows.count), np.float32), np.zeros_like(x)
    roof = MemoryRoof(rows.bytes)
    few = int(min(rows.count, _NUMPY_BYTES // (4 * rows.dim)))
    share = rows.count / few
    weights = rng.standard_normal((few, rows.dim)).astype(np.float32)
    cores = {name: rows.open(name) for name in kernels}
    times: dict[str, dict[str, list[float]]] = {}

    def note(what: str, who: str, found: float) -> None:
        times.setdefault(what, {}).setdefault(who, []).append(found)

    for _ in range(rounds):
        for name, core in cores.items():
            # Of all rows, of which bundles may leave out a few at the end of each group.
            whole = rows.count / (3 * rows.bundles)
            note('dot', name, seconds(core.rows_dot, 0, x[:1], dots[:1]))
            note('bundles', name, whole * seconds(core.bundled, 1, x[:1], out[:1], 'relu'))
            note(f'dot, {tokens} tokens', name, seconds(core.rows_dot, 0, x, dots))
            note(f'bundles, {tokens} tokens', name,
                 whole * seconds(core.bundled, 1, x, out, 'relu'))
        read = roof.thread_seconds()
        for what in ('dot', 'bundles'):
            note(what, _ROOF, read)
            note(what, _TWICE, rows.bytes / roof.bandwidth(2, _TRIES))
        for what, count in (('dot', 1), (f'dot, {tokens} tokens', tokens)):
            note(what, 'numpy', share * seconds(np.matmul, x[:count], weights.T))
    for core in cores.values():
        core.close()
    return {what: {who: float(min(found) if who == _TWICE else np.median(found))
                   for who, found in by_who.items()}
            for what, by_who in times.items()}


def print_times(rows: Rows, found: dict[str, dict], tokens: int) -> None:
    names, lines = list(found['dot']), []
    for what, by_who in found.items():
        several = 'tokens' in what
        work = rows.count * rows.dim * tokens if several else rows.bytes
        lines.append((f'{what}, {"GMAC/s" if several else "GB/s"}',
                      *(f'{work / by_who[name] / 1e9:.1f}' if name in by_who else ''
                        for name in names)))
    show(('', *names), lines, f'{rows.codec}, dim {rows.dim}, {rows.bytes / 1e6:.0f} MB')


def measure(options: Namespace) -> Report:
    figures, ratios = [], {}
    shapes = [(dim, codec) for dim in options.dims for codec in options.codecs]
    with TemporaryDirectory() as folder, Steps() as steps:
        for dim, codec in shapes:
            rows = Rows.write(Path(folder), codec, dim, options.megabytes * 1_000_000)
            kernels = runnable_kernels(rows, options.kernels)
            found = times_of(rows, kernels, options.tokens, options.rounds)
            print_times(rows, found, options.tokens)
            rows.path.unlink()
            figures.append({'codec': codec, 'dim': dim, 'bytes': rows.bytes, 'rows': rows.count,
                            'tokens': options.tokens, 'seconds': found})
            for what in ('dot', 'bundles'):
                ratios.setdefault(f'{codec} {what}', []).append(
                    found[what][_ROOF] / found[what][kernels[0]])
            steps('shapes', len(figures), len(shapes))
    return Report(figures, f'{kernels[0]}, share of the roof: ' + ', '.join(
        f'{name} {np.median(values):.0%}' for name, values in ratios.items()))


def parser() -> ArgumentParser:
    result = command(__doc__)
    result.add_argument('--dims', type=at_least(32), nargs='+', default=[576, 1536, 4096])
    result.add_argument('--codecs', nargs='+', choices=CODECS, default=CODECS)
    result.add_argument('--kernels', nargs='+', choices=_KERNELS, default=_KERNELS)
    result.add_argument('--tokens', type=at_least(2), default=16)
    result.add_argument('--rounds', type=at_least(1), default=5)
    result.add_argument('--megabytes', type=at_least(1), default=64,
                        help='of rows in each measurement')
    return result


if __name__ == '__main__':
    sys.exit(run(parser(), measure))
