"""Rows: the device fails, answers less, damages what it sends, stalls, or is gone."""

import errno
from functools import partial
from itertools import product
from pathlib import Path
import random

from bench.faults.damage import copied_store, flip_bit
from bench.faults.engine_trial import attempt, base_of, clear_faults, nothing, set_fault
from bench.faults.outcome import Ending, Trial
from bench.faults.row import Row
from bench.faults.uses import READERS, USES

Case = tuple[str, str, str]
CASES: tuple[Case, ...] = tuple(product(USES, READERS, ('filling', 'generating')))
_ALWAYS = 10 ** 6
_GONE = (errno.EIO, errno.ENODEV, errno.ENXIO)


def _use_and_reader(case: Case) -> tuple[str, str]:
    return case[:2]


def _number(trial: Trial, case: Case, draw: random.Random) -> int:
    """Of a read while the window is filled, or later; the last ones may differ in number."""
    filled, reads = trial.base['filled'], trial.base['reads']
    return (draw.randint(1, filled) if case[2] == 'filling' else
            draw.randint(filled + 1, filled + 1 + (reads - filled) * 9 // 10))


def _neurons(trial: Trial, case: Case) -> Path:
    return Path(trial.stores, USES[case[0]].store, 'neurons.bin')


def _some_reads(trial: Trial, case: Case, draw: random.Random, *, what: str) -> Ending:
    """One read by its number, or those of a place of the medium, once or for good."""
    before, opened = nothing, nothing
    if draw.random() < 0.5:
        before = set_fault(FAULTS=f'{_number(trial, case, draw)}:{what}')
    else:
        place = draw.randrange(_neurons(trial, case).stat().st_size)
        fault = set_fault(FAULT_PLACE=f'{place}:{draw.choice((1, 2, 3, _ALWAYS))}:{what}')
        before, opened = (fault, nothing) if case[2] == 'filling' else (nothing, fault)
    return attempt(trial, *case[:2], before=before, opened=opened, mended=clear_faults)


def _stalls(trial: Trial, case: Case, draw: random.Random) -> Ending:
    milliseconds = int(draw.uniform(1000, 10_000) * trial.stall_scale)
    return attempt(trial, *case[:2], before=set_fault(
        FAULTS=f'{_number(trial, case, draw)}:stall{milliseconds}'))


def _vanishes(trial: Trial, case: Case, draw: random.Random) -> Ending:
    """And is back when it is asked again, as a loose plug would be."""
    return attempt(trial, *case[:2], mended=clear_faults, before=set_fault(
        FAULTS=f'{_number(trial, case, draw)}+:{draw.choice(_GONE)}'))


def _flipped(trial: Trial, case: Case, draw: random.Random) -> Ending:
    """Some bits on the medium, which stay so until it is written again."""
    neurons = copied_store(trial, USES[case[0]].store, 'neurons.bin') / 'neurons.bin'
    bits = [(draw.randrange(neurons.stat().st_size), draw.randrange(8))
            for _ in range(draw.choice((1, 1, 2, 100)))]

    def flip() -> None:
        for at, bit in bits:
            flip_bit(neurons, at, bit)

    before, opened = (flip, nothing) if case[2] == 'filling' else (nothing, flip)
    return attempt(trial, *case[:2], before=before, opened=opened, mended=flip)


def _row(name: str, what: str) -> Row:
    return Row(name, CASES, base_of, _use_and_reader, partial(_some_reads, what=what))


ROWS = (
    Row('bit flips on the medium', CASES, base_of, _use_and_reader, _flipped),
    _row('bit flips on the way', 'flip'),
    _row('EIO', str(errno.EIO)),
    _row('short reads', 'short'),
    Row('stalls of 1 to 10 s', CASES, base_of, _use_and_reader, _stalls),
    Row('device vanishes', CASES, base_of, _use_and_reader, _vanishes),
)
