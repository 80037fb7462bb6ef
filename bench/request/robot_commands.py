"""Whether answers to constraints of robots' commands are valid, and whether what is wanted can be
said.

Of robot_commands.yaml (written by hand) and of --random ones: answers are drawn byte by byte and
judged by jsonschema or by Python's re, then the wanted answers are walked, byte by byte. Ends with
1 where one is invalid, unreachable or a constraint is refused.
"""

from argparse import ArgumentParser, Namespace
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
import sys
from typing import Any

import yaml

from bench.request.random_commands import random_command
from bench.request.schema_walk import Refused, Walk, compact, invalid
from bench.support.command import Report, at_least, command, run, show
from flash_llm_ros.cli.progress import Steps

WRITTEN = Path(__file__).with_name('robot_commands.yaml')


def written() -> Iterator[tuple[str, str, list[str]]]:
    """Kind, text and wanted answers of each constraint that was written by hand."""
    for constraint, *wanted in yaml.safe_load(WRITTEN.read_text()):
        yield _case(constraint, wanted)


def drawn(count: int) -> Iterator[tuple[str, str, list[str]]]:
    """The same of the first random ones."""
    for number in range(count):
        constraint, wanted = random_command(number)
        yield _case(constraint, [wanted])


def _case(constraint: Any, wanted: list[Any]) -> tuple[str, str, list[str]]:
    if isinstance(constraint, str):
        return 'REGEX', constraint, wanted
    return 'JSON_SCHEMA', compact(constraint), [compact(value) for value in wanted]


def judge(walk: Walk, kind: str, text: str, wanted: list[str], answers: int) -> list[str]:
    """What is wrong with a constraint's answers."""
    try:
        walk.constrain(kind, text)
    except Refused as error:
        return [f'refused: {text}: {error}']
    wrong = [f'unreachable: {answer} of {text}' for answer in wanted if not walk.reaches(answer)]
    wrong += [f'not what is wanted: {answer} of {text}: {reason}' for answer in wanted
              if (reason := invalid(kind, text, answer))]
    return wrong + [f'invalid: {answer} of {text}: {reason}' for answer in walk.answers(answers, 0)
                    if (reason := invalid(kind, text, answer))]


def measure(options: Namespace) -> Report:
    walk, rows, wrong = Walk(), [], []
    counts: Counter[str] = Counter()
    for name, cases in (('by hand', list(written())), ('random', list(drawn(options.random)))):
        with Steps() as steps:
            found = []
            for number, (kind, text, wanted) in enumerate(cases):
                found += judge(walk, kind, text, wanted, options.answers)
                counts['wanted'] += len(wanted)
                counts['answers'] += options.answers
                steps(name, number + 1, len(cases))
        rows.append((name, *(str(sum(kind == which for kind, _, _ in cases))
                             for which in ('JSON_SCHEMA', 'REGEX')),
                     str(sum(len(wanted) for _, _, wanted in cases)),
                     str(len(cases) * options.answers), str(len(found))))
        wrong += found
        counts['constraints'] += len(cases)
    show(('constraints', 'schemas', 'expressions', 'wanted answers', 'drawn answers', 'wrong'),
         rows)
    for line in wrong:
        print(line[:600])
    return Report({**counts, 'wrong': wrong}, f'{counts["constraints"]} constraints of robots: '
                  f'{counts["answers"]} drawn and {counts["wanted"]} wanted answers, '
                  f'{len(wrong)} wrong', bool(wrong))


def parser() -> ArgumentParser:
    result = command(__doc__)
    result.add_argument('--random', type=at_least(0), default=2000, help='so many random ones')
    result.add_argument('--answers', type=at_least(0), default=5, help='are drawn of each')
    return result


if __name__ == '__main__':
    sys.exit(run(parser(), measure))
