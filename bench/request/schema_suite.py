"""How much of the official JSON Schema test suite (draft 2020-12) constraints keep to.

A group's schema is taken or refused. Of the taken ones no invalid instance may be an answer; valid
ones are answers as far as they are written as the engine writes: properties in the schema's order,
whole numbers without a point, formats kept to. Ends with 1 where an invalid one is accepted.
"""

from argparse import ArgumentParser, Namespace
from collections import Counter
import json
import os
from pathlib import Path
import sys

from bench.request.schema_walk import Refused, Walk, compact
from bench.support.command import Report, command, run, show

# The folder `tests/draft2020-12` of github.com/json-schema-org/JSON-Schema-Test-Suite.
SUITE = Path(os.environ.get('JSON_SCHEMA_TEST_SUITE') or Path(__file__).parents[3]
             / 'shared/data/json-schema-test-suite')
COLUMNS = ('groups', 'taken', 'valid', 'reachable', 'invalid', 'accepted')


def judged(path: Path, walk: Walk) -> tuple[Counter[str], list[str]]:
    """Of one file of the suite: its row, and what is wrong or refused."""
    row: Counter[str] = Counter()
    notes = []
    for group in json.loads(path.read_text()):
        name = f'{path.stem}: {group["description"]}'
        row['groups'] += 1
        try:
            walk.constrain('JSON_SCHEMA', json.dumps(group['schema']))
        except Refused as error:
            notes.append(f'refused   {name}: {error}')
            continue
        row['taken'] += 1
        for test in group['tests']:
            text = compact(test['data'])
            reached = walk.reaches(text)
            row['valid' if test['valid'] else 'invalid'] += 1
            row['reachable' if test['valid'] else 'accepted'] += reached
            if reached != test['valid']:
                notes.append(f'{"accepted " if reached else "unreached"} {name}: {text}')
    return row, notes


def measure(options: Namespace) -> Report:
    paths = sorted(options.suite.glob('*.json'))
    if not paths:
        raise ValueError(f'{options.suite} holds no test suite; set JSON_SCHEMA_TEST_SUITE')
    walk, rows, notes = Walk(), {}, []
    for path in paths:
        rows[path.stem], more = judged(path, walk)
        notes += more
    whole = sum(rows.values(), Counter())
    show(('keyword', *COLUMNS), [(name, *(str(row[column]) for column in COLUMNS))
                                 for name, row in [*rows.items(), ('all', whole)]])
    for note in notes if options.notes else ():
        print(note[:200])
    headline = (f'{whole["taken"]} of {whole["groups"]} groups taken, {whole["accepted"]} of '
                f'{whole["invalid"]} invalid instances accepted, {whole["reachable"]} of '
                f'{whole["valid"]} valid ones reachable')
    return Report({'rows': rows, 'all': whole, 'notes': notes}, headline, whole['accepted'] > 0)


def parser() -> ArgumentParser:
    result = command(__doc__)
    result.add_argument('--suite', type=Path, default=SUITE)
    result.add_argument('--notes', action='store_true',
                        help='say what is refused, and which valid instances cannot be reached')
    return result


if __name__ == '__main__':
    sys.exit(run(parser(), measure))
