"""Rows: what writes is killed before any of its calls, or finds the disk full at any of them."""

from collections.abc import Callable
from dataclasses import dataclass
import errno
from itertools import product
import os
from pathlib import Path
import random
import shutil

from bench.faults.engine_trial import attempt, base_of, clear_faults, set_fault, shim
from bench.faults.outcome import Ending, Outcome, Trial
from bench.faults.row import Row
from bench.faults.uses import ask
from flash_llm_ros.convert.calibration import CalibrationOptions, recalibrate
from flash_llm_ros.convert.conversion import ConversionOptions, convert
from flash_llm_ros.engine import Engine, EngineConfig
from flash_llm_ros.store.device_profile import PROFILE, DeviceProfile
from flash_llm_ros.store.flash_store import FlashStore

_BUDGET = 60_000_000
_TEXT = ['The robot waits at the door until somebody opens it. ' * 20]
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EIO)


def _convert(stores: Path, target: Path) -> None:
    convert(stores / 'small_other.checkpoint', target, ConversionOptions(replace=True),
            lambda *_: None)


def _calibrate(stores: Path, target: Path) -> None:
    recalibrate(target, _TEXT, CalibrationOptions(most_tokens=256, measured_tokens=64),
                lambda *_: None)


def _probe(stores: Path, target: Path) -> None:
    DeviceProfile.load(stores / 'gated' / PROFILE).save(target / PROFILE)


@dataclass(frozen=True)
class Work:
    """What replaces a store or a part of it, beside nothing else in its folder."""

    store: str
    do: Callable[[Path, Path], None]


WORKS = {'publishing': Work('small', _convert), 'calibrating': Work('small_gated', _calibrate),
         'probing': Work('small', _probe)}


def _text(store: Path, kept: Path) -> str:
    """In the mode that has most of the store in it; FlashLlmError where it is damaged."""
    opened = FlashStore.open(store)
    opened.verify()
    engine = Engine.open(EngineConfig(
        store, _BUDGET, 'exact' if opened.manifest.calibration is None else 'gated',
        context_length=128, session_folder=kept))
    try:
        return ask(engine)
    finally:
        engine.close()


def _copy(trial: Trial, work: str) -> Path:
    """In a folder with nothing else in it, which the shims look at."""
    target = Path(trial.folder, 'stores', 'robot.store')
    shutil.copytree(Path(trial.stores, WORKS[work].store), target)
    return target


def _watch(target: Path, kind: str, **fault: str) -> None:
    set_fault(CALL_FOLDER=str(target.parent), CALL_KIND=kind, **fault)()


def _base(trial: Trial, work: str, kind: str) -> dict:
    """The texts of before and after, and how many calls are between them."""
    target, kept = _copy(trial, work), Path(trial.folder, 'kept')
    old = _text(target, kept)
    _watch(target, kind)
    before = shim('calls_seen')
    WORKS[work].do(Path(trial.stores), target)
    calls = shim('calls_seen') - before
    return {'calls': calls, 'old': old, 'new': _text(target, kept)}


def _left(trial: Trial, target: Path, allowed: tuple[str, ...]) -> Ending | None:
    """What is wrong with what was left, then with the same work done again; None: nothing."""
    kept = Path(trial.folder, 'kept')
    text = _text(target, kept)
    if text not in (trial.base[name] for name in allowed):
        return Ending(Outcome.WRONG_TEXT, f'{text!r} is neither of {trial.base}')
    WORKS[trial.base['work']].do(Path(trial.stores), target)
    names = [path.name for path in target.parent.iterdir()]
    if (again := _text(target, kept)) != trial.base['new'] or names != [target.name]:
        return Ending(Outcome.WRONG_TEXT, f'done again, {names} give {again!r}')
    return None


def _killed(trial: Trial, work: str, draw: random.Random) -> Ending:
    """At any call; the power may go there as well."""
    trial.base['work'] = work
    target, number = _copy(trial, work), draw.randint(1, trial.base['calls'])
    if (child := os.fork()) == 0:
        _watch(target, 'change', CALL_FAULT=f'{number}:kill')
        try:
            WORKS[work].do(Path(trial.stores), target)
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    wrong = _left(trial, target, ('old', 'new'))
    if wrong is not None:
        return wrong
    return Ending(Outcome.RECOVERED if os.WIFSIGNALED(status) else Outcome.IDENTICAL,
                  f'killed at call {number} of {trial.base["calls"]}')


def _full(trial: Trial, work: str, draw: random.Random) -> Ending:
    """From a call on; the error names a file, what was there before stays, nothing else does."""
    trial.base['work'] = work
    target, number = _copy(trial, work), draw.randint(1, trial.base['calls'])
    before = sorted(path.relative_to(target) for path in target.rglob('*'))
    _watch(target, 'write', CALL_FAULT=f'{number}+:{draw.choice(_FULL)}')
    try:
        WORKS[work].do(Path(trial.stores), target)
        told = None
    except OSError as error:
        told = error
    clear_faults()
    if told is None:
        return Ending(Outcome.IDENTICAL)
    if not str(told.filename or '').startswith(str(target.parent)):
        return Ending(Outcome.CRASH, f'it names no file: {told!r}')
    after = sorted(path.relative_to(target) for path in target.rglob('*'))
    if work != 'probing' and (after != before or len(list(target.parent.iterdir())) != 1):
        return Ending(Outcome.CRASH, f'it leaves {list(target.parent.iterdir())}, {after}')
    return _left(trial, target, ('old',)) or Ending(Outcome.TYPED, str(told))


SNAPSHOTS = ('session', 'kept prompt')


def _snapshot_full(trial: Trial, use: str, draw: random.Random) -> Ending:
    """Which costs time only: no room is no reason for another text, nor for none."""
    number = draw.randint(1, trial.base['calls'])
    return attempt(trial, use, 'threads', before=set_fault(
        CALL_FOLDER=f'{trial.folder}/kept', CALL_KIND='write',
        CALL_FAULT=f'{number}{draw.choice(("", "+"))}:{draw.choice((*_FULL, "short"))}'))


def _snapshot_killed(trial: Trial, use: str, draw: random.Random) -> Ending:
    """The next process finds what the killed one has left."""
    number = draw.randint(1, trial.base['calls'])
    if (child := os.fork()) == 0:
        try:
            attempt(trial, use, 'threads', before=set_fault(
                CALL_FOLDER=f'{trial.folder}/kept', CALL_KIND='change',
                CALL_FAULT=f'{number}:kill'))
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    return attempt(trial, use, 'threads')


def _either(trial: Trial, case: tuple[str, Callable], draw: random.Random) -> Ending:
    return case[1](trial, case[0], draw)


def _base_of(trial: Trial, what: str, kind: str) -> dict:
    if what in WORKS:
        return _base(trial, what, kind)
    return base_of(trial, what, 'threads', kind, f'{trial.folder}/kept')


def _row(name: str, kind: str, work: Callable, snapshot: Callable) -> Row:
    cases = (*product(WORKS, (work,)), *product(SNAPSHOTS, (snapshot,)))
    return Row(name, cases, _base_of, lambda case: (case[0], kind), _either)


ROWS = (_row('killed at a call that writes', 'change', _killed, _snapshot_killed),
        _row('full disk at a call that writes', 'write', _full, _snapshot_full))
