"""Run as a script, where it harms nobody: tries a constraint, or validates an answer.

    python constraint_helper.py MOST_BYTES MOST_SECONDS PATH < TASK

PATH is where llguidance and jsonschema are looked for. TASK is a JSON list: a constraint (what
`parser_of` takes, or JSON_SCHEMA), or ANSWER with a schema and a text. Prints a JSON list: why not,
or '', and the grammar that a constraint becomes. Without the rest of the package, for little
memory and time.
"""

from contextlib import suppress
import decimal
import json
import os
from pathlib import Path
import random
import re
import resource
import sys
import threading
from typing import Any

STACK_BYTES = 1 << 20       # of a trial: half of what any thread has at least
_STEPS = 100                # of an answer that is tried
_END = 256                  # the token behind one for each byte
_DIGITS = 1_000             # of a quotient, for multipleOf


class _Bytes:
    """A vocabulary with a token for each byte, as llguidance asks for it."""

    is_tokenizer_wrapper = True
    bos_token_id = None
    eos_token_id = _END
    special_token_ids = (_END,)
    tokens = (*(bytes([byte]) for byte in range(_END)), b'<end>')

    def __call__(self, text: str) -> list[int]:
        return list(text.encode())


class Trial:
    """Begins an answer of bytes drawn at random."""

    def __init__(self) -> None:
        from constraint_grammar import parser_of
        from json_schema.grammar import grammar_of
        import llguidance

        self._library, self._parser_of, self._grammar_of = llguidance, parser_of, grammar_of
        self._tokenizer = llguidance.LLTokenizer(_Bytes(), n_vocab=_END + 1, eos_token=_END,
                                                 slices=[])

    def __call__(self, kind: str, text: str, choices: list[str]) -> tuple[str, str]:
        """Why there can be no answer, or '', and the constraint as a grammar, if it is one."""
        try:
            grammar = self._grammar(kind, text)
            parser = self.parser('GRAMMAR' if grammar else kind, grammar or text, choices)
        except ValueError as error:
            return str(error), ''
        except RecursionError:
            return 'its parts are nested too deeply', ''
        draw = random.Random(0)
        for _ in range(_STEPS):
            if parser.is_stopped():
                break
            forced = parser.compute_ff_tokens()[:_STEPS]
            allowed = self._allowed(parser)
            for token in forced or [draw.choice(allowed)] if forced or allowed else []:
                parser.consume_token(token)
        return parser.get_error(), grammar

    def parser(self, kind: str, text: str, choices: list[str]) -> Any:
        """Of a REGEX, CHOICES or a GRAMMAR, in bytes."""
        return self._parser_of(self._library, self._tokenizer, kind, text, choices)

    def _grammar(self, kind: str, text: str) -> str:
        if kind == 'JSON_SCHEMA':
            return 'start: j1\n' + self._grammar_of(text, self._is_empty)
        return self._with_schemas(text) if kind == 'GRAMMAR' else ''

    def _with_schemas(self, text: str) -> str:
        """A grammar, its %json schemas replaced by rules: llguidance's own get numbers wrong.

        Answers to %spaced_json are written as Python and chat templates write JSON.
        """
        from json_schema.numbers import TooHard

        parts, rules, place = [], [], 0
        for number, found in enumerate(re.finditer(r'%(spaced_)?json\s*(?=\{)', text)):
            try:
                _, end = json.JSONDecoder().raw_decode(text, found.end())
            except ValueError as error:
                raise TooHard(f'%json is not followed by JSON: {error}') from None
            prefix = f'json{number}x'
            rules.append(self._grammar_of(text[found.end():end], self._is_empty, prefix,
                                          ' ' if found[1] else ''))
            parts += [text[place:found.start()], f' {prefix}1 ']
            place = end
        return '\n'.join([''.join([*parts, text[place:]]), *rules])

    def _is_empty(self, terminal: str) -> bool:
        try:
            parser = self.parser('GRAMMAR', f'start: T\nT: {terminal}', [])
        except ValueError as error:
            if 'NoExtensionBias' in str(error):
                return True
            raise
        return not set(self._allowed(parser)) - {_END}      # which ends what matches nothing

    def _allowed(self, parser: Any) -> list[int]:
        mask = parser.compute_bitmask()
        return [token for token in range(_END + 1) if mask[token // 8] >> token % 8 & 1]


def what_is_wrong(schema_text: str, answer: str) -> str:
    """What the package jsonschema says against an answer, or ''."""
    from jsonschema import Draft202012Validator, validators

    decimal.getcontext().prec = _DIGITS
    schema = _ascii(json.loads(schema_text, parse_float=decimal.Decimal))
    try:
        value = json.loads(answer, parse_float=decimal.Decimal)
    except ValueError as error:
        return str(error)
    # 1e40 is an integer, too.
    types = Draft202012Validator.TYPE_CHECKER.redefine('integer', lambda _, value: isinstance(
        value, int | decimal.Decimal) and not isinstance(value, bool) and value % 1 == 0)
    validator = validators.extend(Draft202012Validator, type_checker=types)(
        schema, format_checker=Draft202012Validator.FORMAT_CHECKER)
    return next((error.message for error in validator.iter_errors(value)), '')


def _ascii(schema: Any) -> Any:
    r"""The schema with \d and \w in its patterns as JSON Schema has them, not as Python does."""
    if isinstance(schema, list):
        return [_ascii(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    found = {key: part if key in ('const', 'enum') else _ascii(part)
             for key, part in schema.items()}
    if isinstance(schema.get('pattern'), str):
        found['pattern'] = f'(?a:{schema["pattern"]})'
    if isinstance(schema.get('patternProperties'), dict):
        found['patternProperties'] = {f'(?a:{pattern})': _ascii(part) for pattern, part
                                      in schema['patternProperties'].items()}
    return found


def main() -> None:
    most_bytes, most_seconds = int(sys.argv[1]), int(sys.argv[2])
    sys.path += [*sys.argv[3].split(os.pathsep), str(Path(__file__).parent)]
    task = json.load(sys.stdin)
    if task[0] == 'ANSWER':
        import jsonschema

        jsonschema.Draft202012Validator({}).is_valid(None)      # everything is loaded
        attempt = lambda: (what_is_wrong(*task[1:]), '')        # noqa: E731
    else:
        trial = Trial()
        attempt = lambda: trial(*task)                          # noqa: E731
    with open('/proc/self/status', encoding='ascii') as file:
        data = next(int(line.split()[1]) * 1024 for line in file if line.startswith('VmData:'))
    with suppress(OSError), open('/proc/self/oom_score_adj', 'w', encoding='ascii') as file:
        file.write('1000')      # rather this process than the robot's
    used = sum(resource.getrusage(resource.RUSAGE_SELF)[:2])
    for limit, most in ((resource.RLIMIT_CORE, 0),
                        (resource.RLIMIT_DATA, data + STACK_BYTES + most_bytes),
                        (resource.RLIMIT_CPU, int(used) + 1 + most_seconds)):
        resource.setrlimit(limit, (most, most))
    threading.stack_size(STACK_BYTES)
    found: list[tuple[str, str]] = []
    thread = threading.Thread(target=lambda: found.append(attempt()))
    thread.start()
    thread.join()
    print(json.dumps(found[0]))     # there is none, and the exit code is 1, where it has failed


if __name__ == '__main__':
    main()
