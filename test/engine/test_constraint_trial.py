"""Constraints are tried in a process of their own, once each."""

import json
from pathlib import Path
import subprocess

import pytest

from bench.faults.hostile_constraints import chained, periods
from flash_llm_ros.engine.request import constraint_trial
from flash_llm_ros.engine.request.constraint import Constraint, ConstraintKind
from flash_llm_ros.engine.request.constraint_trial import ConstraintTrial

MOST = 20_000_000


@pytest.fixture
def trial() -> ConstraintTrial:
    return ConstraintTrial(MOST)


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list:
    """The processes that were started."""
    found, run = [], subprocess.run
    monkeypatch.setattr(constraint_trial.subprocess, 'run',
                        lambda *a, **k: found.append(run(*a, **k)) or found[-1])
    return found


@pytest.mark.parametrize(('kind', 'text', 'word'), [
    (ConstraintKind.JSON_SCHEMA, '{"type": "integer"}', ''),
    (ConstraintKind.REGEX, '(ab)+', ''),
    (ConstraintKind.GRAMMAR, 'start: "a" start "b" | "c"', ''),
    (ConstraintKind.GRAMMAR, chained(100), ''),
    (ConstraintKind.REGEX, '(a', 'unclosed'),
    (ConstraintKind.GRAMMAR, chained(2500), 'nested too deeply'),
    (ConstraintKind.GRAMMAR, periods((97, 101, 103, 107, 109, 113)), 'more than 2 s or 20 MB'),
])
def test_what_becomes_of_it(trial: ConstraintTrial, kind: ConstraintKind, text: str,
                            word: str) -> None:
    reason = trial.outcome(Constraint(kind, text)).reason
    assert word in reason and bool(reason) == bool(word)


def test_choices(trial: ConstraintTrial) -> None:
    assert trial.outcome(Constraint(ConstraintKind.CHOICES, choices=('left', 'right'))) == ('', '')


def test_each_is_tried_once(trial: ConstraintTrial, runs: list) -> None:
    good, bad = Constraint(ConstraintKind.REGEX, 'a+'), Constraint(ConstraintKind.REGEX, '(a')
    for _ in range(3):
        assert not trial.outcome(good).reason and trial.outcome(bad).reason
    assert len(runs) == 2


def test_what_is_remembered_is_bounded(trial: ConstraintTrial, runs: list,
                                       monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constraint_trial, '_MOST_KNOWN', 2)
    a, b, c = (Constraint(ConstraintKind.REGEX, letter) for letter in 'abc')
    for constraint in (a, b, a, c, a):          # b is the one used longest ago
        trial.outcome(constraint)
    assert len(runs) == 3
    trial.outcome(b)
    assert len(runs) == 4


def test_memory_is_bounded(runs: list) -> None:
    """By the system: with next to none, not even a small one can be prepared."""
    enum = json.dumps({'enum': [f'{i:05d}' * 3 for i in range(3000)]})
    tight = ConstraintTrial(400_000)
    assert 'or 0 MB' in tight.outcome(Constraint(ConstraintKind.JSON_SCHEMA, enum)).reason
    assert not ConstraintTrial(MOST).outcome(Constraint(ConstraintKind.JSON_SCHEMA, enum)).reason


def test_a_dead_trial_leaves_no_file(trial: ConstraintTrial, tmp_path: Path,
                                     monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as a core dump."""
    monkeypatch.chdir(tmp_path)
    assert trial.outcome(Constraint(ConstraintKind.GRAMMAR, chained(2500))).reason
    assert list(tmp_path.iterdir()) == []


def test_an_answer_is_judged_by_an_independent_validator(trial: ConstraintTrial) -> None:
    """With exact numbers, and however long it would take: a pattern can make `re` go back."""
    schema = json.dumps({'properties': {'speed': {'maximum': 0.75, 'multipleOf': 0.01},
                                        'at': {'enum': [1764496379123456768]},
                                        'name': {'pattern': r'^\w+$'}}})
    assert trial.what_is_wrong(schema, '{"speed":0.29,"at":1764496379123456768}') == ''
    assert '0.76' in trial.what_is_wrong(schema, '{"speed":0.76}')
    assert 'not one of' in trial.what_is_wrong(schema, '{"at":1764496379123456769}')
    assert 'match' in trial.what_is_wrong(schema, '{"name":"größe"}')
    assert 'delimiter' in trial.what_is_wrong(schema, '{"at":1')
    assert 'more than 2 s' in trial.what_is_wrong('{"pattern": "^(a*)*b"}', f'"{"a" * 40}"')
