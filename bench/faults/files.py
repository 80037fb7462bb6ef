"""Rows: what lies beside the neurons is damaged, cannot be read, or is exchanged."""

from collections.abc import Callable
import errno
from itertools import product
import os
from pathlib import Path
import random
import shutil

from bench.faults.damage import copied_store, flip_bit
from bench.faults.engine_trial import attempt, base_of, clear_faults, set_fault
from bench.faults.outcome import Ending, Trial
from bench.faults.row import Row
from bench.faults.stores import OTHER_OF_SHAPE
from bench.faults.uses import READERS, USES
from flash_llm_ros.store.publication import Publication

# Of a gated store, which has every kind.
FILES = ('manifest.yaml', 'neurons.bin', 'resident.safetensors', 'predictors.safetensors',
         'predictors/00.onnx', 'tokenizer.json', 'tokenizer.safetensors', 'chat_template.jinja',
         'profile.yaml')


def _flipped(file: Path, draw: random.Random) -> None:
    for _ in range(draw.choice((1, 1, 1, 30))):
        flip_bit(file, draw.randrange(file.stat().st_size), draw.randrange(8))


def _cut(file: Path, draw: random.Random) -> None:
    os.truncate(file, draw.randrange(file.stat().st_size))


def _lengthened(file: Path, draw: random.Random) -> None:
    with file.open('ab') as end:
        end.write(draw.randbytes(draw.choice((1, 4096))))


def _overwritten(file: Path, draw: random.Random) -> None:
    """A block of the medium, with nothing or with anything."""
    size = min(4096, file.stat().st_size)
    with file.open('r+b') as place:
        place.seek(draw.randrange(file.stat().st_size - size + 1))
        place.write(draw.choice((bytes(size), b'\xff' * size, draw.randbytes(size))))


def _another(file: Path, draw: random.Random) -> None:
    """The content of another file of the store, as a confused directory has it."""
    folder = file.parents[1] if file.parent.name in ('layers', 'predictors') else file.parent
    shutil.copyfile(draw.choice([other for other in folder.rglob('*')
                                 if other.is_file() and not other.samefile(file)]), file)


def _missing(file: Path, draw: random.Random) -> None:
    file.unlink()


def _no_file(file: Path, draw: random.Random) -> None:
    """What may have its name and is none."""
    file.unlink()
    draw.choice((file.mkdir, lambda: os.mkfifo(file), lambda: file.symlink_to('/dev/zero'),
                 lambda: file.symlink_to(file), lambda: file.symlink_to('/proc/self/mem')))()


KINDS: tuple[Callable[[Path, random.Random], None], ...] = (
    _flipped, _cut, _lengthened, _overwritten, _another, _missing, _no_file)
DAMAGED = (*((name, 'gated') for name in FILES),
           *((name, 'exact') for name in FILES if 'predictors' not in name and 'prof' not in name))


def _damaged(trial: Trial, case: tuple[str, str], draw: random.Random) -> Ending:
    name, use = case
    file = copied_store(trial, use, name) / name
    return attempt(trial, use, 'threads', before=lambda: draw.choice(KINDS)(file, draw))


def _unreadable(trial: Trial, case: tuple[str, str], draw: random.Random) -> Ending:
    """A call that reads a file beside the neurons, a snapshot included."""
    use, what = case
    number = draw.randint(1, trial.base['calls'])
    return attempt(trial, use, 'threads', mended=clear_faults, before=set_fault(
        CALL_FOLDER=trial.stores, CALL_KIND='read', CALL_FAULT=f'{number}:{what}'))


def _published(store: Path, other: Path) -> None:
    with Publication(store, replace=True) as place:
        shutil.copytree(other, place.path, dirs_exist_ok=True)
        place.publish()


def _written_over(store: Path, other: Path) -> None:
    """File by file, as a copy does that knows of no publication."""
    for file in other.rglob('*'):
        if file.is_file():
            shutil.copyfile(file, store / file.relative_to(other))


def _removed(store: Path, other: Path) -> None:
    shutil.rmtree(store)


def _emptied(store: Path, other: Path) -> None:
    for file in store.rglob('*'):
        if file.is_file():
            os.truncate(file, 0)


WAYS = (_published, _written_over, _removed, _emptied)
EXCHANGED = tuple(product(WAYS, USES, READERS, ('loading', 'opened')))


def _exchanged(trial: Trial, case: tuple, draw: random.Random) -> Ending:
    """While it is loaded or once it is open, by a store of the same shape."""
    way, use, reader, when = case
    name = USES[use].store
    store = Path(trial.folder, 'store')
    shutil.copytree(Path(trial.stores, name), store)
    other = Path(trial.stores, OTHER_OF_SHAPE[name])
    return attempt(trial, use, reader, **{when: lambda: way(store, other)})


def _use_and_threads(case: tuple[str, str]) -> tuple[str, str]:
    return case[0], 'threads'


ROWS = (
    Row('damaged files', DAMAGED, base_of, lambda case: (case[1], 'threads'), _damaged),
    Row('files read with EIO', tuple((use, str(errno.EIO)) for use in USES), base_of,
        _use_and_threads, _unreadable),
    Row('files read short', tuple((use, 'short') for use in USES), base_of, _use_and_threads,
        _unreadable),
    Row('files damaged on the way', tuple((use, 'sector') for use in USES), base_of,
        _use_and_threads, _unreadable),
    Row('store exchanged while in use', EXCHANGED, base_of, lambda case: case[1:3], _exchanged),
)
