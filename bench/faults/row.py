"""A row of the table: one kind of fault, and the cases that it is tried in, in turn."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
import random
from typing import Any

from bench.faults.outcome import Ending, Trial


@dataclass(frozen=True)
class Row:
    """Case `seed % len(cases)` is what a seed tries; the rest it draws at random."""

    name: str
    cases: Sequence[Any]
    base_of: Callable[..., dict]        # of a trial and of what base_key says of a case
    base_key: Callable[[Any], tuple]
    trial: Callable[[Trial, Any, random.Random], Ending]

    def case(self, seed: int) -> Any:
        return self.cases[seed % len(self.cases)]

    def base(self, trial: Trial) -> dict:
        return self.base_of(trial, *self.base_key(self.case(trial.seed)))

    def attempt(self, trial: Trial) -> Ending:
        return self.trial(trial, self.case(trial.seed),
                          random.Random(f'{self.name} {trial.seed}'))
