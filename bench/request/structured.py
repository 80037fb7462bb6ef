"""What answers by a schema take (passes over the flash, bytes, time, tokens that it forces); with
--schemas: whether answers to random schemas are valid, says the package jsonschema.

Times answers by examples/motion_command.schema.json. An answer to a random schema that its
max_tokens cut off has to be a CONSTRAINT_UNMET.
"""

from argparse import ArgumentParser, Namespace
from collections import Counter
from dataclasses import asdict, dataclass, field
import json
from pathlib import Path
import statistics
import sys
import time
from typing import Any

from jsonschema import Draft202012Validator

from bench.request.random_schemas import random_case
from bench.support.command import Report, at_least, byte_size, command, run, show
from flash_llm_ros.cli.progress import Steps
from flash_llm_ros.engine import (
    Constraint,
    ConstraintKind,
    Engine,
    EngineConfig,
    GenerationRequest,
    SamplingParams,
)
from flash_llm_ros.engine.request.generation import Generation
from flash_llm_ros.store.errors import ErrorCode, FlashLlmError

SCHEMA = Path(__file__).parents[2] / 'examples/motion_command.schema.json'
SYSTEM_PROMPT = ('You translate what a person says into one command for a robot, as JSON with '
                 'action, speed and seconds.')
SAID = ('Go forward slowly for three seconds.', 'Turn left!', 'Back off, quick.', 'Stop there.',
        'Drive ahead at normal speed for five seconds.', 'A little to the right, please.',
        'Move back for two seconds.', 'Full speed ahead!', 'Spin around to the left, slowly.',
        'Wait.', 'Come to me.', 'Turn right for four seconds.')
MOST_TOKENS = 200       # of an answer to a random schema


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


@dataclass
class Passes:
    """An observer of the forward pass: when each was done, and what had been read by then."""

    engine: Engine
    ends: list[tuple[float, int]] = field(default_factory=list)

    def feed_forward(self, layer: int, ffn_input: Any, active: Any) -> None:
        if layer == self.engine.model.spec.layers - 1:
            self.ends.append((time.perf_counter(), self.engine.stats()['flash_bytes']))


def constrained(engine: Engine, schema: object, prompt: str, **options: object) -> Generation:
    return engine.start(GenerationRequest(
        prompt, constraint=Constraint(ConstraintKind.JSON_SCHEMA, json.dumps(schema)), **options))


def timed(engine: Engine, schema: object, prompt: str) -> Cost:
    engine.model.observer = passes = Passes(engine)
    begin = time.perf_counter()
    try:
        generation = constrained(engine, schema, prompt, system_prompt=SYSTEM_PROMPT,
                                 max_tokens=60)
        for _ in generation:
            pass
    finally:
        engine.model.observer = None
    end, stats = time.perf_counter(), generation.stats
    of_prompt = -(-(stats.prompt_tokens - stats.cached_tokens) // engine.model.chunk)
    prompt_end, prompt_bytes = passes.ends[of_prompt - 1]
    return Cost(generation.text, stats.generated_tokens, stats.forced_tokens,
                len(passes.ends) - of_prompt,
                (engine.stats()['flash_bytes'] - prompt_bytes) / 1e6,
                (end - prompt_end) * 1e3, (end - begin) * 1e3)


def open_engine(options: Namespace, budget: int) -> Engine:
    return Engine.open(EngineConfig(
        options.store, budget, options.mode, structured=True, context_length=options.context,
        threads=options.threads))


def timed_answers(options: Namespace, budget: int, steps: Steps) -> list[Cost]:
    schema = json.loads(SCHEMA.read_text())
    validator, costs = Draft202012Validator(schema), []
    engine = open_engine(options, budget)
    for number in range(options.prompts):
        costs.append(timed(engine, schema, SAID[number % len(SAID)]))
        validator.validate(json.loads(costs[-1].text))
        steps(f'{budget / 1e6:.0f} MB', number + 1, options.prompts)
    engine.close()
    return costs


def print_costs(results: dict[int, list[Cost]]) -> str:
    """Print the table; returns the headline."""
    lines, rows = [], []
    for budget, costs in results.items():
        times = [cost.milliseconds for cost in costs]
        tokens, forced, passes, megabytes = (
            statistics.mean(getattr(cost, name) for cost in costs)
            for name in ('tokens', 'forced', 'passes', 'megabytes'))
        rows.append((f'{budget / 1e6:.0f} MB', f'{tokens:.1f}', f'{forced:.1f}', f'{passes:.1f}',
                     f'{megabytes:.1f}', f'{statistics.median(times):.0f}', f'{max(times):.0f}',
                     f'{statistics.median(cost.whole_milliseconds for cost in costs):.0f}'))
        lines.append(f'{budget / 1e6:.0f} MB: {tokens:.1f} tokens in {passes:.1f} passes over the '
                     f'flash, {statistics.median(times):.0f} ms')
    show(('budget', 'tokens', 'of them forced', 'passes', 'MB read', 'ms, median', 'slowest',
          'with the prompt'), rows)
    return '; '.join(lines)


def check_schemas(options: Namespace, budget: int) -> Report:
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
    for line in wrong:
        print(line)
    return Report({'ended': dict(ended), 'wrong': wrong}, f'{options.schemas} random schemas: '
                  + ', '.join(f'{count} {how}' for how, count in ended.most_common()), bool(wrong))


def invalid(schema: dict, text: str) -> list[str]:
    """What jsonschema says against an answer."""
    try:
        answer = json.loads(text)
    except ValueError as error:
        return [str(error)]
    validator = Draft202012Validator(
        schema, format_checker=Draft202012Validator.FORMAT_CHECKER)
    return [error.message for error in validator.iter_errors(answer)]


def measure(options: Namespace) -> Report:
    if options.schemas:
        return check_schemas(options, (options.budget or [400_000_000])[0])
    with Steps() as steps:
        results = {budget: timed_answers(options, budget, steps)
                   for budget in options.budget or (120_000_000, 200_000_000)}
    headline = print_costs(results)
    return Report({budget: [asdict(cost) for cost in costs] for budget, costs in results.items()},
                  headline)


def parser() -> ArgumentParser:
    result = command(__doc__)
    result.add_argument('--store', type=Path, default=Path('models/smollm2.store'))
    result.add_argument('--budget', type=byte_size, action='append',
                        help='may be given several times')
    result.add_argument('--mode', default='exact')
    result.add_argument('--context', type=at_least(2), default=384, help='tokens')
    result.add_argument('--threads', type=at_least(1), default=1)
    result.add_argument('--prompts', type=at_least(1), default=12)
    result.add_argument('--schemas', type=at_least(0), default=0,
                        help='check so many random schemas')
    return result


if __name__ == '__main__':
    sys.exit(run(parser(), measure))
