"""What constraints cost and gain: forced batches timed, and answers to random schemas checked.

    python bench/structured.py [--store models/smollm2.store] [--budget 120MB ...] [--mode exact]
        [--prompts 12] [--rounds 2] [--json PATH]
    python bench/structured.py --schemas 500 [--budget 400MB] [--json PATH]

The first times answers by examples/motion_command.schema.json with tokens that the schema forces
run together, and one by one, in turns (A B A B), and counts passes over the flash and bytes. The
second answers a prompt for each of so many random schemas and validates what comes with the
package jsonschema; an answer that its max_tokens cut off has to be a CONSTRAINT_UNMET.
"""

from argparse import ArgumentParser, Namespace
from collections import Counter
from dataclasses import asdict, dataclass
import json
import os
from pathlib import Path
import statistics
import sys
import time

from jsonschema import Draft202012Validator
from rich.box import MARKDOWN
from rich.console import Console
from rich.table import Table

from bench.request.random_schemas import random_case
from flash_llm_ros.cli.progress import Steps
from flash_llm_ros.engine import (
    Constraint,
    ConstraintKind,
    Engine,
    EngineConfig,
    GenerationRequest,
    SamplingParams,
)
from flash_llm_ros.engine.byte_size import parse_byte_size
from flash_llm_ros.store.errors import ErrorCode, FlashLlmError

SCHEMA = Path(__file__).parents[1] / 'examples/motion_command.schema.json'
SYSTEM_PROMPT = ('You translate what a person says into one command for a robot, as JSON with '
                 'action, speed and seconds.')
SAID = ('Go forward slowly for three seconds.', 'Turn left!', 'Back off, quick.', 'Stop there.',
        'Drive ahead at normal speed for five seconds.', 'A little to the right, please.',
        'Move back for two seconds.', 'Full speed ahead!', 'Spin around to the left, slowly.',
        'Wait.', 'Come to me.', 'Turn right for four seconds.')
MOST_TOKENS = 200       # of an answer to a random schema
WAYS = {'batches': True, 'one by one': False}
_MB = 1e6


@dataclass(frozen=True)
class Cost:
    """Of one answer; passes, bytes and time behind the passes that its prompt takes."""

    text: str
    tokens: int
    forced: int
    passes: int         # over the flash
    megabytes: float
    milliseconds: float
    whole_milliseconds: float       # with the prompt


def constrained(engine: Engine, schema: object, prompt: str, **options: object):
    return engine.start(GenerationRequest(
        prompt, constraint=Constraint(ConstraintKind.JSON_SCHEMA, json.dumps(schema)), **options))


def timed(engine: Engine, schema: object, prompt: str) -> Cost:
    forward, passes = engine.model.forward, []

    def count(*arguments, **options):
        forward(*arguments, **options)
        passes.append((options.get('logits') is not None, time.perf_counter(),
                       engine.stats()['flash_bytes']))

    engine.model.forward = count
    begin = time.perf_counter()
    try:
        generation = constrained(engine, schema, prompt, system_prompt=SYSTEM_PROMPT,
                                 max_tokens=60)
        for _ in generation:
            pass
    finally:
        engine.model.forward = forward
    end, stats = time.perf_counter(), generation.stats
    # The prompt ends with the first pass that computes logits.
    last = next(i for i, (with_logits, _, _) in enumerate(passes) if with_logits)
    _, prompt_end, prompt_bytes = passes[last]
    return Cost(generation.text, stats.generated_tokens, stats.forced_tokens,
                len(passes) - last - 1, (engine.stats()['flash_bytes'] - prompt_bytes) / _MB,
                (end - prompt_end) * 1e3, (end - begin) * 1e3)


def compare(options: Namespace, budget: str) -> dict[str, list[Cost]]:
    schema = json.loads(SCHEMA.read_text())
    validator = Draft202012Validator(schema)
    costs: dict[str, list[Cost]] = {way: [] for way in WAYS}
    prompts = [SAID[i % len(SAID)] for i in range(options.prompts)]
    with Steps() as steps:
        for turn in range(options.rounds):
            for way, batches in WAYS.items():
                engine = open_engine(options, budget, force_batches=batches)
                for i, prompt in enumerate(prompts):
                    cost = timed(engine, schema, prompt)
                    validator.validate(json.loads(cost.text))
                    costs[way].append(cost)
                    steps(f'{budget}, {way}, round {turn + 1}', i + 1, len(prompts))
                engine.close()
    return costs


def open_engine(options: Namespace, budget: str, **settings: object) -> Engine:
    return Engine.open(EngineConfig(
        options.store, parse_byte_size('budget', budget), options.mode, structured=True,
        context_length=options.context, threads=options.threads, **settings))


def print_comparison(console: Console, results: dict[str, dict[str, list[Cost]]]) -> str:
    table = Table('budget', 'forced tokens', 'tokens', 'of them forced', 'passes', 'MB read',
                  'ms, median', 'ms, p95', 'with the prompt', box=MARKDOWN)
    lines = []
    for budget, costs in results.items():
        for way, found in costs.items():
            times = [cost.milliseconds for cost in found]
            table.add_row(budget, way, *(f'{statistics.mean(values):.1f}' for values in (
                [cost.tokens for cost in found], [cost.forced for cost in found],
                [cost.passes for cost in found], [cost.megabytes for cost in found])),
                f'{statistics.median(times):.0f}', f'{statistics.quantiles(times, n=20)[-1]:.0f}',
                f'{statistics.median([cost.whole_milliseconds for cost in found]):.0f}')
        batches, single = (costs[way] for way in WAYS)
        faster, fewer = (statistics.median([getattr(cost, name) for cost in single])
                         / statistics.median([getattr(cost, name) for cost in batches])
                         for name in ('milliseconds', 'passes'))
        lines.append(f'{budget}: {faster:.2f} times as fast with forced batches, '
                     f'{fewer:.2f} times fewer passes over the flash')
    console.print(table)
    return '; '.join(lines)


def check_schemas(options: Namespace, budget: str) -> tuple[Counter[str], list[str]]:
    """How many answers ended how, and what is wrong with those that do not validate."""
    engine = open_engine(options, budget)
    ended: Counter[str] = Counter()
    wrong = []
    with Steps() as steps:
        for number in range(options.schemas):
            schema, prompt = random_case(number)
            # Every other one greedy, the rest drawn with much chance.
            sampling = SamplingParams(temperature=1.2 * (number % 2), seed=number)
            generation = constrained(engine, schema, prompt, sampling=sampling,
                                     max_tokens=MOST_TOKENS)
            try:
                for _ in generation:
                    pass
                errors = invalid(schema, generation.text)
                ended['invalid' if errors else 'valid'] += 1
                wrong += [f'{number}: {error}' for error in errors]
            except FlashLlmError as error:
                if error.code is not ErrorCode.CONSTRAINT_UNMET:
                    raise
                ended['cut off, with its error'] += 1
            steps('random schemas', number + 1, options.schemas)
    engine.close()
    return ended, wrong


def invalid(schema: dict, text: str) -> list[str]:
    """What jsonschema says against an answer."""
    try:
        answer = json.loads(text)
    except ValueError as error:
        return [str(error)]
    validator = Draft202012Validator(
        schema, format_checker=Draft202012Validator.FORMAT_CHECKER)
    return [error.message for error in validator.iter_errors(answer)]


def main() -> int:
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--store', type=Path, default=Path('models/smollm2.store'))
    parser.add_argument('--budget', action='append', help='may be given several times')
    parser.add_argument('--mode', choices=('exact', 'sparse'), default='exact')
    parser.add_argument('--context', type=int, default=384, help='tokens')
    parser.add_argument('--threads', type=int, default=1)
    parser.add_argument('--prompts', type=int, default=12)
    parser.add_argument('--rounds', type=int, default=2)
    parser.add_argument('--schemas', type=int, default=0, help='check so many random schemas')
    parser.add_argument('--json', type=Path)
    options = parser.parse_args()
    console = Console(width=110)
    console.print(f'{options.store.name}, mode {options.mode}, load average '
                  f'{os.getloadavg()[0]:.1f} on {os.cpu_count()} processors')
    if options.schemas:
        ended, wrong = check_schemas(options, (options.budget or ['400MB'])[0])
        for line in wrong:
            console.print(line)
        content: object = {'ended': dict(ended), 'wrong': wrong}
        headline = f'{options.schemas} random schemas: ' + ', '.join(
            f'{count} {how}' for how, count in ended.most_common())
    else:
        results = {budget: compare(options, budget)
                   for budget in options.budget or ('120MB', '200MB')}
        headline = print_comparison(console, results)
        wrong = []
        content = {budget: {way: [asdict(cost) for cost in found] for way, found in costs.items()}
                   for budget, costs in results.items()}
    if options.json:
        options.json.write_text(json.dumps(content, indent=2) + '\n')
    console.print(headline, soft_wrap=True)
    return 1 if wrong else 0


if __name__ == '__main__':
    sys.exit(main())
