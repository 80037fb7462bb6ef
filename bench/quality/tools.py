"""How many of 60 spoken commands become the right call of one of eight tools, with the grammar of
calls and without, and how many of 20 other sayings none.

The commands and tools of tool_commands.yaml, greedy. Free text is read twice: as the model was
trained to spell a call, and, kindly, as any JSON in it that has a name and arguments. A right call
has the right name and arguments.
"""

from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from dataclasses import dataclass
import json
from pathlib import Path
import sys
from typing import Any

from jsonschema import Draft202012Validator
import yaml

from bench.support.command import Report, byte_size, command, run, show
from flash_llm_ros.cli.progress import Steps
from flash_llm_ros.engine import Engine, EngineConfig, GenerationRequest, Tool
from flash_llm_ros.store.errors import ErrorCode, FlashLlmError

WRITTEN = Path(__file__).with_name('tool_commands.yaml')
SYSTEM_PROMPT = ('You are a robot. Call the function that does what you are told. '
                 'Where none does, answer in words.')
_MOST_TOKENS = 80
_NOTHING = ('<no stop>',)   # beside a stop string no grammar keeps calls out of the text
_CHOICES = {'none': 'free text', 'auto': 'text or a call', 'required': 'a call'}
Call = tuple[str, Any]      # name and arguments


@dataclass(frozen=True)
class Command:
    """What is said, and the call that is right."""

    text: str
    name: str
    arguments: dict[str, Any]

    def is_right(self, call: Call | None, schemas: dict[str, Any]) -> bool:
        if call is None or call[0] != self.name or not (
                Draft202012Validator({**schemas[self.name], 'additionalProperties': False}
                                     ).is_valid(call[1])):
            return False
        return all(call[1][key] in (value if isinstance(value, list) else [value])
                   for key, value in self.arguments.items())


def written() -> tuple[dict[str, Any], list[Command], list[str]]:
    """Descriptions and schemas of the tools by name, the commands, and what needs no call."""
    found = yaml.safe_load(WRITTEN.read_text())
    tools = {name: (tool['description'], {
        'type': 'object', 'properties': tool['properties'], 'required': list(tool['properties'])})
        for name, tool in found['tools'].items()}
    return tools, [Command(*line) for line in found['commands']], found['talk']


def trained(text: str) -> Call | None:
    """The call of a text that spells it as Hermes' models were trained to."""
    _, begin, rest = text.partition('<tool_call>')
    inside, end, _ = rest.partition('</tool_call>')
    return next(calls(inside), None) if begin and end else None


def calls(text: str) -> Iterator[Call]:
    """Everything in a text that could be a call, however it is spelled."""
    decoder, at = json.JSONDecoder(), 0
    while (at := text.find('{', at)) >= 0:
        try:
            found, at = decoder.raw_decode(text, at)
        except ValueError:
            at += 1
            continue
        if isinstance(found, dict) and isinstance(found.get('name'), str):
            yield found['name'], found.get('arguments', found.get('parameters'))


def measure(options: Namespace) -> Report:
    tools, commands, talk = written()
    schemas = {name: schema for name, (_, schema) in tools.items()}
    rows, figures = [], []
    for store in options.stores:
        engine = Engine.open(EngineConfig(store, options.budget, structured=True,
                                          context_length=2048))
        try:
            for row in _rows(engine, tools, schemas, commands, talk):
                figures.append({'store': str(store), 'model': engine.model_name, **row})
                rows.append((engine.model_name, row['answer'], *(
                    f'{row[key]}' for key in ('right', 'right_tool', 'call', 'words')),
                    f'{row["tokens"]:.1f}', f'{row["forced"]:.1f}'))
        finally:
            engine.close()
    show(('model', 'answer', f'right, of {len(commands)}', 'the right tool', 'a call',
          f'no call, of {len(talk)}', 'tokens', 'of these forced'), rows)
    best = {answer: ', '.join(f'{row["right"]}' for row in figures if row['answer'] == answer)
            for answer in dict.fromkeys(row['answer'] for row in figures)}
    return Report(figures, f'right calls of {len(commands)}: ' + '; '.join(
        f'{answer}: {right}' for answer, right in best.items()))


def _rows(engine: Engine, tools: dict[str, Any], schemas: dict[str, Any],
          commands: list[Command], talk: list[str]) -> Iterator[dict[str, Any]]:
    said = [*(each.text for each in commands), *talk]
    offered = tuple(Tool(name, description, json.dumps(schema))
                    for name, (description, schema) in tools.items())
    for choice, title in _CHOICES.items():
        answers = []
        with Steps() as steps:
            for number, text in enumerate(said):
                answers.append(_answer(engine, GenerationRequest(
                    text, SYSTEM_PROMPT, max_tokens=_MOST_TOKENS, tools=offered,
                    tool_choice=choice, keep_system_prompt=True,
                    stop=_NOTHING if choice == 'none' else ())))
                steps(f'{engine.model_name}, {title}', number + 1, len(said))
        readings = {f'{title}, as trained': [trained(text) for text, *_ in answers],
                    f'{title}, any JSON': [next(calls(text), None) for text, *_ in answers]} if (
            choice == 'none') else {title: [call for _, call, *_ in answers]}
        costs = [cost for *_, cost in answers[:len(commands)]]
        for answer, found in readings.items():
            words = [call is None and text.strip() != ''
                     for call, (text, *_) in zip(found, answers, strict=True)][len(commands):]
            found = found[:len(commands)]
            yield {'answer': answer,
                   'right': sum(map(lambda each, call: each.is_right(call, schemas), commands,
                                    found)),
                   'right_tool': sum(call is not None and call[0] == each.name
                                     for each, call in zip(commands, found, strict=True)),
                   'call': sum(call is not None for call in found),
                   'words': sum(words),
                   'tokens': sum(cost.generated_tokens for cost in costs) / len(costs),
                   'forced': sum(cost.forced_tokens for cost in costs) / len(costs),
                   'calls': found}


def _answer(engine: Engine, request: GenerationRequest) -> tuple[str, Call | None, Any]:
    """Text, call and cost; a call that does not end within the tokens is none."""
    generation = engine.start(request)
    try:
        for _ in generation:
            pass
    except FlashLlmError as error:
        if error.code is not ErrorCode.CONSTRAINT_UNMET:
            raise
    call = next(((call.name, json.loads(call.arguments)) for call in generation.tool_calls), None)
    return generation.text, call, generation.stats


def parser() -> ArgumentParser:
    result = command(__doc__)
    result.add_argument('stores', type=Path, nargs='+', metavar='STORE')
    result.add_argument('--budget', type=byte_size, default='1200MB',
                        help='of each (default: %(default)s)')
    return result


if __name__ == '__main__':
    sys.exit(run(parser(), measure))
