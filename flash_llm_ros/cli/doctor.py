"""`flash_llm doctor`: what is this machine, and which model in which budget does it carry?"""

from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from contextlib import contextmanager
import os
from pathlib import Path
import tempfile

from flash_llm_ros.cli.main import fail
from flash_llm_ros.cli.progress import Steps
from flash_llm_ros.cli.seconds import seconds
from flash_llm_ros.engine.memory.device_probe import probe
from flash_llm_ros.report.candidates import CONTEXT, READING, Prospect, prospects, recommended
from flash_llm_ros.report.machine import Machine
from flash_llm_ros.store.device_profile import DeviceProfile
from flash_llm_ros.store.errors import FlashLlmError

EPILOG = """\
examples:
  flash_llm doctor                          of the device under this folder
  flash_llm doctor /media/card              where the model is to lie
  flash_llm doctor /data/smollm2.store      a store is only read; else 256 MB are written for it

What it says of models is arithmetic: at most so fast, by the flash and the memory's bandwidth to
one thread. `flash_llm bench STORE` measures.
"""
FILE_BYTES, _PIECE = 256 << 20, 4 << 20


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument('path', nargs='?', type=Path, default=Path(),
                        help='a folder on the flash device, or a store (default: this folder)')
    parser.add_argument('--seconds', type=seconds, default=10.0, metavar='S',
                        help='of measuring the flash (default: 10)')


def run(options: Namespace) -> int:
    """Return 0, or 1 where the flash cannot be measured or no model fits."""
    try:
        with _readable(options.path) as file, Steps() as steps:
            profile = probe(file, options.seconds, steps)
    except (FlashLlmError, OSError, ValueError) as error:
        return fail(error)
    machine = Machine.here()
    _print_machine(machine, profile)
    found = prospects(machine.free, profile.sequential_bytes_per_second, machine.memory_rate)
    _print_models(found)
    best = recommended(found)
    if best is None:
        return fail(MemoryError(f'{machine.free / 1e6:.0f} MB are free, too few for any of the '
                                'models that were measured.'))
    _print_settings(best, options.path, machine)
    return 0


@contextmanager
def _readable(path: Path) -> Iterator[Path]:
    """A file on that device: a store's own, or a new one for as long as this takes."""
    neurons = path / 'neurons.bin'
    if neurons.is_file():
        yield neurons
        return
    with tempfile.NamedTemporaryFile(prefix='.flash_llm_doctor_', dir=path) as file:
        noise = os.urandom(_PIECE)      # some devices do not store zeros
        for _ in range(FILE_BYTES // _PIECE):
            file.write(noise)
        file.flush()
        os.fsync(file.fileno())
        yield Path(file.name)


def _print_machine(machine: Machine, profile: DeviceProfile) -> None:
    most = max(m.reads_per_second for m in profile.measurements if m.pattern == 'random')
    lockable = ('without limit' if machine.lockable is None else
                f'{machine.lockable / 1e6:.1f} MB (`ulimit -l`, LimitMEMLOCK=)')
    lines = {
        'board': f'{machine.board}, {machine.processors} processors',
        'memory': f'{machine.free / 1e9:.1f} of {machine.memory / 1e9:.1f} GB free; one thread '
                  f'reads {machine.memory_rate / 1e9:.1f} GB/s; may be locked: {lockable}',
        'flash': f'{profile.device}, by {profile.reader}: '
                 f'{profile.sequential_bytes_per_second / 1e6:.0f} MB/s one after the other, '
                 f'{most:.0f} reads/s here and there'
                 + ('' if profile.direct else '; through the page cache: no direct I/O here'),
        'ROS': machine.ros or 'none: `flash_llm chat STORE` and `prompt STORE TEXT` need none',
    }
    for name, text in lines.items():
        print(f'{name:<8}{text}')


def _print_models(found: list[Prospect]) -> None:
    print(f'\n{"model":<30}{"on flash":>10}{"budget":>10}{"read a token":>14}{"at most":>16}')
    for each in found:
        print(f'{each.candidate.name:<30}{each.candidate.flash_bytes / 1e6:>7.0f} MB'
              f'{each.budget / 1e6:>7.0f} MB{each.read_bytes / 1e6:>11.0f} MB'
              f'{each.most_rate:>7.1f} tokens/s')
    for each in found:
        print(f'{each.candidate.name}: with a context of {CONTEXT} tokens; '
              f'{each.candidate.context_text}')


def _print_settings(best: Prospect, path: Path, machine: Machine) -> None:
    store = (path if (path / 'manifest.yaml').is_file() else path / 'model.store').resolve()
    slow = ('' if best.most_rate >= READING else
            f'    # Slower than one reads ({READING:g} tokens/s): none is faster here.\n')
    print(f"""
flash_llm convert CHECKPOINT {store} {best.candidate.convert}

# {best.candidate.name}
/**:
  ros__parameters:
{slow}    store: {store}
    memory:
      dram_budget: {best.budget // 10**6}MB
    compute:
      threads: {max(machine.processors - 1, 1)}      # one is left to the robot""")
