"""Constraints walked byte by byte, as the engine takes them: which answers can be given."""

from collections.abc import Iterator
from decimal import Decimal, getcontext
import json
from pathlib import Path
import random
import re
import sys
from typing import Any

from jsonschema import Draft202012Validator
import numpy as np

from flash_llm_ros.engine.request import constraint_helper

sys.path.append(str(Path(constraint_helper.__file__).parent))   # as in its own process
getcontext().prec = 1_000       # of a quotient, for multipleOf
_END = 256
_LONG = 100     # bytes, behind which an answer is led to its end,
_LONGEST = 400  # and given up: chance finds no four digits in a row


class Refused(ValueError):
    """A constraint that the engine does not take."""


class Walk:
    """Of one constraint after the other."""

    def __init__(self) -> None:
        self._trial = constraint_helper.Trial()

    def constrain(self, kind: str, text: str) -> None:
        """Take the next one, of a kind of ConstraintKind; raises Refused."""
        reason, grammar = self._trial(kind, text, [])
        if reason:
            raise Refused(reason)
        self._start = ('GRAMMAR', grammar, []) if grammar else (kind, text, [])

    def reaches(self, text: str) -> bool:
        """Whether this can be the answer."""
        parser, wanted = self._trial.parser(*self._start), list(text.encode())
        return (parser.validate_tokens(wanted) == len(wanted) and parser.consume_tokens(wanted)
                and parser.is_accepting())

    def answers(self, count: int, seed: int) -> Iterator[str]:
        """Answers of bytes drawn at random from those that are allowed, ended as soon as may be."""
        for number in range(count):
            draw = random.Random(f'{seed} {number}')
            parser, found = self._trial.parser(*self._start), bytearray()
            while not parser.is_stopped() and len(found) < _LONGEST:
                mask = np.frombuffer(parser.compute_bitmask(), np.uint8)
                allowed = np.flatnonzero(np.unpackbits(mask, bitorder='little')).tolist()
                ends = [byte for byte in b'"]}' if byte in allowed]
                if _END in allowed and (len(allowed) == 1 or draw.random() < 0.3):
                    break
                hurry = len(found) > _LONG or draw.random() < 0.1
                byte = draw.choice(ends if ends and hurry else
                                   [byte for byte in allowed if byte != _END])
                found.append(byte)
                parser.consume_token(byte)
            if len(found) < _LONGEST:
                yield found.decode(errors='replace')


def compact(value: Any) -> str:
    """JSON as an answer has it."""
    return json.dumps(value, separators=(',', ':'), ensure_ascii=False)


def invalid(kind: str, text: str, answer: str) -> str:
    """What an independent judge says against an answer, or '': jsonschema, or `re`.

    Numbers are judged as they stand and as doubles.
    """
    if kind == 'REGEX':
        return '' if re.fullmatch(text, answer, re.ASCII) else 'it is not matched'
    for parse in (Decimal, float):
        try:
            value = json.loads(answer, parse_float=parse)
        except ValueError as error:
            return str(error)
        # 0.3 is no multiple of 0.1 to a machine that counts in halves.
        schema = json.loads(text, parse_float=parse, object_hook=(
            _without_multiples if parse is float else None))
        validator = Draft202012Validator(
            schema, format_checker=Draft202012Validator.FORMAT_CHECKER)
        for error in validator.iter_errors(value):
            return error.message
    return ''


def _without_multiples(schema: dict[str, Any]) -> dict[str, Any]:
    return {key: part for key, part in schema.items() if key != 'multipleOf'}
