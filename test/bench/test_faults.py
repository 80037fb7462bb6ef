"""Damaged flash, files and input: a small campaign of each row, and a server that tells the truth.

`python -m bench.faults.table` runs more of each.
"""

from collections.abc import Callable, Iterator
import faulthandler
import os
from pathlib import Path
import random
import signal
import time

import pytest

from bench.faults import server
from bench.faults.outcome import BAD, Ending, Outcome, Trial
from bench.faults.processes import Processes, processes
from bench.faults.row import Row
from bench.faults.rows import ROWS
from bench.faults.stores import write_stores
from flash_llm_ros.store.errors import ReadFailedError

LIMIT_S = 100.0
SEEDS = range(0, 28, 7)     # of each row; so far apart, they are of different cases


@pytest.fixture(scope='module')
def trials(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Processes]:
    folder = tmp_path_factory.mktemp('faults')
    write_stores(folder)
    with processes(folder, LIMIT_S) as found:
        yield found


@pytest.mark.parametrize('name', ROWS)
def test_no_wrong_text_no_crash_no_hang_none_over_budget(trials: Processes, name: str) -> None:
    for seed in SEEDS:
        ending = trials.attempt(name, seed, stall_scale=0.01)
        assert ending.outcome not in BAD, (seed, ending)


def died() -> Ending:
    faulthandler.disable()      # which would tell pytest's stderr
    os.kill(os.getpid(), signal.SIGSEGV)


def untyped() -> Ending:
    raise KeyError('layers')


def typed() -> Ending:
    raise ReadFailedError('neurons.bin')


def forever() -> Ending:
    while True:
        time.sleep(1)


def greedy() -> Ending:
    taken = b'x' * 30_000_000
    return Ending(Outcome.IDENTICAL, str(len(taken)), budget=20_000_000)


@pytest.mark.parametrize(('what', 'outcome', 'limit'), [
    (died, Outcome.CRASH, 60), (untyped, Outcome.CRASH, 60), (typed, Outcome.TYPED, 60),
    (forever, Outcome.HANG, 0.2), (greedy, Outcome.OVER_BUDGET, 60),
    (lambda: Ending(Outcome.WRONG_TEXT, 'as told'), Outcome.WRONG_TEXT, 60)])
def test_each_ending_is_seen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
                             what: Callable[[], Ending], outcome: Outcome, limit: float) -> None:
    def trial(trial: Trial, case: object, draw: random.Random) -> Ending:
        return what()

    monkeypatch.setitem(ROWS, 'test', Row('test', (None,), lambda trial: {}, lambda case: (),
                                          trial))
    found = server.watched(Trial('test', 0, {}, str(tmp_path), str(tmp_path)), False, limit)
    assert Outcome[found['outcome']] is outcome, found
