"""A trial of one use of an engine: opened, asked, compared, and asked again without the fault."""

from collections.abc import Callable
import ctypes
import os
from pathlib import Path

from bench.faults.outcome import Ending, Outcome, Trial
from bench.faults.uses import USES, Use, least_budget
from flash_llm_ros.engine import Engine
from flash_llm_ros.store.errors import ErrorCode, FlashLlmError

Step = Callable[[], object]


def nothing() -> None:
    """No fault at this point."""


def shim(name: str) -> int:
    """A counter of the shims; 0 where they are not preloaded."""
    function = getattr(ctypes.CDLL(None), name, None)
    return function() if function else 0


def base_of(trial: Trial, use: str, reader: str, calls: str = 'read',
            watched: str = '') -> dict:
    """Texts of the undamaged store, its budget, how many reads filling and all took.

    And how many calls of a kind there were about other files, those in `watched`.
    """
    stores, folder, made = Path(trial.stores), Path(trial.folder), USES[use]
    budget = least_budget(made, stores, folder, reader)
    set_fault(CALL_FOLDER=watched or trial.stores, CALL_KIND=calls)()
    before = shim('reads_seen')
    engine = made.open(stores, folder, budget, print, reader=reader)
    filled = shim('reads_seen') - before
    texts = made.texts(engine)
    engine.close()
    return {'texts': texts, 'budget': budget, 'filled': filled,
            'reads': shim('reads_seen') - before, 'calls': shim('calls_seen')}


def attempt(trial: Trial, use: str, reader: str, *, before: Step = nothing,
            loading: Step = nothing, opened: Step = nothing, mended: Step | None = None,
            **options: object) -> Ending:
    """`before`: what is done before it is opened, `opened`: once it is open.

    `loading`: once everything was verified. `mended`, where the fault can be taken back: an engine
    that has told of it answers again then.
    """
    made, budget, lines = USES[use], trial.base['budget'], []

    def log(line: str) -> None:
        lines.append(line)
        if line.startswith('loading'):
            loading()

    before()
    try:
        engine = made.open(Path(trial.stores), Path(trial.folder), budget, log, reader=reader,
                           **options)
    except FlashLlmError as error:
        return told(Outcome.REFUSED, error, budget)
    opened()
    found = asked(made, engine, trial.base['texts'], lines)
    if found.outcome is Outcome.TYPED and mended is not None:
        mended()
        engine.reset_session('')        # whose turns before the fault were good
        again = asked(made, engine, trial.base['texts'], lines)
        if again.outcome not in (Outcome.IDENTICAL, Outcome.RECOVERED):
            found = Ending(Outcome.WRONG_TEXT, f'after {found.detail}, and once the fault was '
                           f'gone: {again.outcome.value} {again.detail}')
    engine.close()
    return Ending(found.outcome, found.detail, budget)


def beside_others(trial: Trial, hostile: Callable[[Engine], None]) -> Ending:
    """A hostile request of an engine with constraints, then an ordinary one, which is compared."""
    made, budget, found = USES['constrained'], trial.base['budget'], Ending(Outcome.IDENTICAL)
    engine = made.open(Path(trial.stores), Path(trial.folder), budget, lambda line: None,
                       reader='threads')
    try:
        hostile(engine)
    except FlashLlmError as error:
        found = told(Outcome.TYPED, error)
    after = asked(made, engine, trial.base['texts'], [])
    engine.close()
    return Ending(found.outcome if after.outcome is Outcome.IDENTICAL else after.outcome,
                  found.detail or after.detail, budget)


def told(outcome: Outcome, error: FlashLlmError, budget: int = 0) -> Ending:
    """INTERNAL is the code of what nobody has foreseen."""
    return Ending(Outcome.CRASH if error.code is ErrorCode.INTERNAL else outcome,
                  f'{error.code.name}: {error}', budget)


def asked(use: Use, engine: Engine, expected: list[str], lines: list[str]) -> Ending:
    try:
        texts = use.texts(engine)
    except FlashLlmError as error:
        return told(Outcome.TYPED, error)
    if texts != expected:
        return Ending(Outcome.WRONG_TEXT, f'{texts} instead of {expected}')
    anew = any('anew' in line for line in lines)
    return Ending(Outcome.RECOVERED if anew or engine.stats()['retries'] else Outcome.IDENTICAL)


def set_fault(**settings: str) -> Step:
    """Of the shims, from when this is called on."""
    return lambda: os.environ.update(settings)


def clear_faults() -> None:
    for name in ('FAULTS', 'FAULT_PLACE', 'CALL_FAULT'):
        os.environ.pop(name, None)
