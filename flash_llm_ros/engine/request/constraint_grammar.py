"""Constraints as parsers of llguidance; run as a script, one is tried where it harms nobody.

    python constraint_grammar.py FOLDER_OF_LLGUIDANCE MOST_BYTES MOST_SECONDS < CONSTRAINT

The constraint is a JSON list of what `parser_of` takes; prints in JSON why it is refused, or ''.
Little memory and time is why this file imports the standard library only.
"""

from contextlib import suppress
import json
import random
import resource
import sys
import threading
from typing import Any

# What a constraint may take, however malicious: no more than WORK_BYTES, and tens of
# milliseconds a step (test_constraint_limits.py).
LIMITS = {'max_items_in_row': 500, 'initial_lexer_fuel': 100_000, 'step_lexer_fuel': 50_000,
          'step_max_items': 20_000, 'max_lexer_states': 20_000, 'max_grammar_size': 50_000,
          'verbose_errors': False}
# No blanks between JSON's parts: each would be a pass over the flash. A schema may not loosen it.
_JSON = {'whitespace_flexible': False, 'lenient': False, 'coerce_one_of': False}
STACK_BYTES = 1 << 20       # of a trial: half of what any thread has at least
_STEPS = 100                # of an answer that is tried
_END = 256                  # the token behind one for each byte


def parser_of(library: Any, tokenizer: Any, kind: str, text: str, choices: list[str]) -> Any:
    """A matcher of the imported llguidance; ValueError with its explanation."""
    matcher = library.LLMatcher
    if kind == 'JSON_SCHEMA':
        grammar = matcher.grammar_from_json_schema(text, overrides=_JSON)
    elif kind == 'REGEX':
        grammar = matcher.grammar_from_regex(text)
    elif kind == 'CHOICES':
        alternatives = ' | '.join(json.dumps(choice, ensure_ascii=False)
                                  for choice in dict.fromkeys(choices))
        grammar = matcher.grammar_from_lark(f'start: CHOICE\nCHOICE: {alternatives}')
    else:
        grammar = matcher.grammar_from_lark(text)
    made = matcher(tokenizer, grammar, log_level=0, limits=library.LLParserLimits(**LIMITS))
    if made.is_error():
        raise ValueError(made.get_error())
    return made


class _Bytes:
    """A vocabulary with a token for each byte, as llguidance asks for it."""

    is_tokenizer_wrapper = True
    bos_token_id = None
    eos_token_id = _END
    special_token_ids = (_END,)
    tokens = (*(bytes([byte]) for byte in range(_END)), b'<end>')

    def __call__(self, text: str) -> list[int]:
        return list(text.encode())


def _attempt(library: Any, constraint: list[Any]) -> str:
    """Begin an answer of bytes drawn at random; returns why there can be none, or ''."""
    tokenizer = library.LLTokenizer(_Bytes(), n_vocab=_END + 1, eos_token=_END, slices=[])
    try:
        parser = parser_of(library, tokenizer, *constraint)
    except ValueError as error:
        return str(error)
    draw = random.Random(0)
    for _ in range(_STEPS):
        if parser.is_stopped():
            break
        forced = parser.compute_ff_tokens()[:_STEPS]
        mask = parser.compute_bitmask()
        allowed = [token for token in range(_END + 1) if mask[token // 8] >> token % 8 & 1]
        for token in forced or [draw.choice(allowed)] if forced or allowed else []:
            parser.consume_token(token)
    return ''


def main() -> None:
    folder, most_bytes, most_seconds = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    sys.path.append(folder)
    import llguidance

    constraint = json.load(sys.stdin)
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
    found: list[str] = []
    thread = threading.Thread(target=lambda: found.append(_attempt(llguidance, constraint)))
    thread.start()
    thread.join()
    print(json.dumps(found[0]))     # there is none, and the exit code is 1, where it has failed


if __name__ == '__main__':
    main()
