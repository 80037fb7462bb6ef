"""Row: good groups in another's place, or of another store of the same shape."""

from collections.abc import Callable
from itertools import product
from pathlib import Path
import random

from bench.faults.damage import copied_store
from bench.faults.engine_trial import attempt, base_of, nothing
from bench.faults.outcome import Ending, Trial
from bench.faults.row import Row
from bench.faults.stores import OTHER_OF_SHAPE
from bench.faults.uses import READERS, USES
from flash_llm_ros.store.flash_store import FlashStore

Taken = dict[int, int]      # whose bytes a group gets


def _span(numbers: range, draw: random.Random) -> range:
    begin, end = sorted(draw.sample(numbers, 2))
    return range(begin, end + 1)


def _exchanged(numbers: range, draw: random.Random) -> Taken:
    one, other = draw.sample(numbers, 2)
    return {one: other, other: one}


def _copied(numbers: range, draw: random.Random) -> Taken:
    """As a write does that the device has misdirected."""
    one, other = draw.sample(numbers, 2)
    return {one: other}


def _shifted(numbers: range, draw: random.Random) -> Taken:
    """A part of the file, by one group or more, as a wrong mapping does."""
    span, by = _span(numbers, draw), draw.choice((1, 8, -1))
    return {number: span[(at + by) % len(span)] for at, number in enumerate(span)}


def _the_same(numbers: range, draw: random.Random) -> Taken:
    """Of the other store."""
    return {number: number for number in _span(numbers, draw)}


KINDS: dict[str, Callable[[range, random.Random], Taken]] = {
    'exchanged': _exchanged, 'copied': _copied, 'shifted': _shifted,
    'of another store': _the_same}
Case = tuple[str, str, str, str]
CASES: tuple[Case, ...] = tuple(product(KINDS, USES, READERS, ('filling', 'generating')))


def place_groups(source: Path, target: Path, size: int, taken: Taken) -> None:
    """Write into the groups of one neuron file what others have in another one."""
    with source.open('rb') as right, target.open('r+b') as file:
        for number, other in taken.items():
            right.seek(other * size)
            file.seek(number * size)
            file.write(right.read(size))


def _wrong_groups(trial: Trial, case: Case, draw: random.Random) -> Ending:
    """Of the whole file, or of one section, whose groups look alike."""
    kind, use, reader, when = case
    store = USES[use].store
    right = Path(trial.stores, store, 'neurons.bin')
    source = (Path(trial.stores, OTHER_OF_SHAPE[store], 'neurons.bin')
              if kind == 'of another store' else right)
    target = copied_store(trial, store, 'neurons.bin') / 'neurons.bin'
    geometry = FlashStore.open(target.parent).manifest.geometry
    section = draw.choice(geometry.sections)
    taken = KINDS[kind](range(geometry.groups) if draw.random() < 0.3 else
                        range(section.first_group, section.end_group), draw)

    def damage() -> None:
        place_groups(source, target, geometry.group_bytes, taken)

    def mend() -> None:
        place_groups(right, target, geometry.group_bytes, {number: number for number in taken})

    before, opened = (damage, nothing) if when == 'filling' else (nothing, damage)
    return attempt(trial, use, reader, before=before, opened=opened, mended=mend)


ROWS = (Row('wrong groups', CASES, base_of, lambda case: case[1:3], _wrong_groups),)
