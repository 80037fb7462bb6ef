"""How a trial ended."""

from dataclasses import dataclass
from enum import Enum


class Outcome(str, Enum):
    """The columns of the table, good ones first."""

    __str__ = str.__str__       # Python 3.10 has no StrEnum

    IDENTICAL = 'identical text'    # the fault was harmless, or never met
    RECOVERED = 'recovered'         # identical text, and something was read or computed again
    TYPED = 'typed error'
    REFUSED = 'refused at open'
    WRONG_TEXT = 'wrong text'       # it ended without an error, and is not what it should be
    CRASH = 'crash'                 # a signal, or an exception that is no typed error
    HANG = 'hang'
    OVER_BUDGET = 'over budget'


BAD = (Outcome.WRONG_TEXT, Outcome.CRASH, Outcome.HANG, Outcome.OVER_BUDGET)


@dataclass(frozen=True)
class Ending:
    """Of one trial. `budget`: bytes that its process may take, 0 where none was set."""

    outcome: Outcome
    detail: str = ''
    budget: int = 0


@dataclass(frozen=True)
class Trial:
    """What is to be tried: `seed` says everything, `base` is what the undamaged one gave."""

    row: str
    seed: int
    base: dict
    folder: str         # an empty one of its own
    stores: str         # see stores.py
    stall_scale: float = 1.0
