"""What the checksum of every group costs: tokens per second and processor time per token, with it
and with a core that was compiled here without it, taken in turns.
"""

from argparse import ArgumentParser, Namespace
from pathlib import Path
import shutil
from statistics import median
import subprocess
import sys
import sysconfig
import tempfile
from typing import Any

import pybind11

from bench.support.command import Report, at_least, byte_size, command, run, show
from bench.support.worker import ROOT, run_worker

WORKER = 'bench.faults.checksum_worker'
_IN = 'io/group_file.cpp'
_COMPARED, _IGNORED = 'if (checksums_ == Checksums::kIgnored) {', 'if (true) {'


def build_without(folder: Path) -> Path:
    """The extension, compiled with a core that looks at no checksum; a minute."""
    native = shutil.copytree(ROOT / 'native', folder / 'native')
    source = (native / _IN).read_text()
    if source.count(_COMPARED) != 1:
        raise RuntimeError(f'native/{_IN} has another way to ignore checksums; tell this command')
    (native / _IN).write_text(source.replace(_COMPARED, _IGNORED))
    library = folder / f'_native{sysconfig.get_config_var("EXT_SUFFIX")}'
    done = subprocess.run(
        ['c++', '-std=c++17', '-O3', '-g0', '-pthread', '-fvisibility=hidden', '-ffp-contract=off',
         '-fPIC', '-shared', f'-I{native}', f'-I{pybind11.get_include()}',
         f'-I{sysconfig.get_path("include")}', *map(str, sorted(native.glob('*/*.cpp'))),
         '-o', str(library)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f'the core cannot be compiled: {done.stderr[-2000:]}')
    return library


def measure(options: Namespace) -> Report:
    job = {'store': str(options.store.resolve()), 'budget': options.budget,
           'mode': options.mode, 'tokens': options.tokens, 'threads': options.threads}
    runs: dict[str, list[dict[str, Any]]] = {'with': [], 'without': []}
    with tempfile.TemporaryDirectory() as folder:
        library = str(build_without(Path(folder)))
        for _ in range(options.rounds):
            runs['with'].append(run_worker(WORKER, job))
            runs['without'].append(run_worker(WORKER, {**job, 'core': library}))
    if len({each['text'] for found in runs.values() for each in found}) != 1:
        raise RuntimeError('the texts differ')
    figures = {name: {key: median(each[key] for each in found) for key in found[0] if key != 'text'}
               for name, found in runs.items()}
    show(('checksums', 'tokens/s', 'CPU ms/token', 'groups checked/token', 'MB read/token'),
         [(name, f'{found["tokens_per_second"]:.2f}', f'{1000 * found["cpu"]:.1f}',
           f'{found["checked"]:.0f}', f'{found["flash_bytes"] / 1e6:.1f}')
          for name, found in figures.items()])
    price = figures['with']['cpu'] / figures['without']['cpu'] - 1
    return Report({'runs': runs, 'medians': figures},
                  f'checksums take {100 * price:.1f} % of processor time a token')


def parser() -> ArgumentParser:
    result = command(__doc__)
    result.add_argument('store', type=Path)
    result.add_argument('budget', type=byte_size)
    result.add_argument('--mode', default='exact', choices=('exact', 'gated'))
    result.add_argument('--threads', type=at_least(1), default=1)
    result.add_argument('--tokens', type=at_least(2), default=32)
    result.add_argument('--rounds', type=at_least(1), default=5)
    return result


if __name__ == '__main__':
    sys.exit(run(parser(), measure))
