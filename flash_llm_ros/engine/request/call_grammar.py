"""The grammar of answers with tool calls: text, calls whose arguments are valid, or both."""

from collections.abc import Callable, Mapping, Sequence
import json
import re

from flash_llm_ros.engine.request.constraint import refuse
from flash_llm_ros.engine.text.call_format import ID, CallFormat
from flash_llm_ros.engine.text.tools import ID_CHARACTERS, Tool

# Text does not begin like JSON or a mark, but may with a thought.
_TEXT = r'\s*(<think>|[^\s{\[<])(?s:.*)'
_ANY_ID = f'ID: /[0-9A-Za-z]{{{ID_CHARACTERS}}}/'


def call_grammar(form: CallFormat, tools: Sequence[Tool], choice: str) -> str:
    """In Lark's notation, all marks as text; `choice` is a name or one of CHOICES.

    An answer has one call at most: what comes next depends on its result. Raises
    FlashLlmError(INVALID_CONSTRAINT) that names a tool whose arguments the format cannot have.
    """
    begins = [re.escape(spelling.begin).replace('/', r'\/') for spelling in form.spellings
              if spelling.begin]
    lines = ['TEXT: ' + ' & '.join([f'/{_TEXT}/', *map(_without, begins)])]
    lines += [f'{_mark(form, mark)}: {json.dumps(mark)}' for mark in form.marks]
    if ID in form.own.middle + form.own.tail:
        lines.append(_ANY_ID)
    called = [tool for tool in tools if choice in ('auto', 'required', tool.name)]
    starts = []
    spellings = {'auto': form.spellings, 'none': ()}.get(choice, (form.own,))
    for index, spelling in enumerate(spellings):
        begin = _symbols(form, spelling.begin)
        if choice == 'auto' and spelling.begin:
            own = re.escape(spelling.begin).replace('/', r'\/')
            lines += [_before(index, f'BEFORE{index}'), f'BEFORE{index}: ' + ' & '.join(
                [rf'/(\s*|{_TEXT}){own}/', *(_without(other) for other in begins if other != own)])]
            begin = f'before{index}'
        starts.append(f'{begin} call{index}')
        lines.append(f'call{index}: ' + ' | '.join(
            f'{_symbols(form, f"{spelling.opening}{tool.name}{spelling.middle}")} '
            f'{spelling.arguments.rule}{number} {_symbols(form, spelling.tail)}'
            for number, tool in enumerate(called)))
    if choice in ('auto', 'none'):
        starts.append('TEXT?')
    kinds = {spelling.arguments.rule: spelling.arguments for spelling in spellings}
    for number, tool in enumerate(called):
        for kind in kinds.values():
            try:
                lines += kind.rules(f'{kind.rule}{number}', tool.schema)
            except ValueError as error:
                refuse(f'tools[{tools.index(tool)}].parameters ({tool.name}): {error}')
    return '\n'.join([f'start: {" | ".join(starts)}', *lines])


def with_id(grammar: str, call_id: str) -> str:
    """The grammar of calls with this id, where they have one."""
    return grammar.replace(_ANY_ID, f'ID: "{call_id}"')


def with_tokens(grammar: str, form: CallFormat, tokens: Mapping[str, int]) -> str:
    """The grammar for a vocabulary in which these marks are tokens."""
    for mark, token in tokens.items():
        grammar = grammar.replace(f'{_mark(form, mark)}: {json.dumps(mark)}',
                                  f'{_mark(form, mark)}: <[{token}]>')
    for index, spelling in enumerate(form.spellings):
        if spelling.begin in tokens:
            grammar = re.sub(
                rf'^{re.escape(_before(index, ""))}.*$',
                rf'before{index}: (TEXT | /\\s+/)? {_mark(form, spelling.begin)}', grammar,
                flags=re.M)
    return grammar


def mark_tokens(form: CallFormat, encode: Callable[[str], list[int]],
                bytes_of: Callable[[list[int]], bytes]) -> dict[str, int]:
    """The marks that the model has as tokens, and which."""
    return {mark: token for mark in form.marks for token in encode(mark)
            if bytes_of([token]) == mark.encode()}


def _without(begin: str) -> str:
    return f'~/(?s:.*){begin}(?s:.*)/'


def _before(index: int, what: str) -> str:
    """The rule of text with the first mark behind it."""
    return f'before{index}[lazy]: {what}'


def _symbols(form: CallFormat, text: str) -> str:
    marks = '|'.join(re.escape(mark) for mark in (*form.marks, ID))
    return ' '.join('ID' if part == ID else
                    _mark(form, part) if part in form.marks else json.dumps(part)
                    for part in re.split(f'({marks})', text) if part)


def _mark(form: CallFormat, mark: str) -> str:
    return f'mark{form.marks.index(mark)}'
