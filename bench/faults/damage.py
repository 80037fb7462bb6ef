"""Files that the medium has damaged."""

import os
from pathlib import Path
import shutil
from typing import BinaryIO

from bench.faults.outcome import Trial


def flip_bit(place: Path | BinaryIO, at: int, bit: int = 0) -> None:
    """Of the byte at this offset of a file, which may be open and have no name."""
    if isinstance(place, Path):
        with place.open('r+b') as file:
            return flip_bit(file, at, bit)
    place.seek(at)
    byte = place.read(1)[0]
    place.seek(at)
    place.write(bytes([byte ^ 1 << bit]))
    place.flush()


def copied_store(trial: Trial, store: str, *names: str) -> Path:
    """The store of a trial, of which the files with these names may be changed."""
    def copy(source: str, target: str) -> None:
        (shutil.copyfile if Path(target).relative_to(copied).as_posix() in names
         else os.link)(source, target)

    copied = Path(trial.folder, 'store')
    shutil.copytree(Path(trial.stores, store), copied, copy_function=copy)
    return copied
