"""Constraints as parsers of llguidance, with limits. Imports the standard library only."""

import json
import re
from typing import Any

# What a constraint may take, however malicious: no more than WORK_BYTES, and tens of
# milliseconds a step (test_constraint_limits.py).
LIMITS = {'max_items_in_row': 500, 'initial_lexer_fuel': 100_000, 'step_lexer_fuel': 50_000,
          'step_max_items': 20_000, 'max_lexer_states': 20_000, 'max_grammar_size': 50_000,
          'verbose_errors': False}
# A robot's expressions mean ASCII by them; Rust's notation means all scripts.
_CLASSES = {r'\d': '[0-9]', r'\D': '[^0-9]', r'\w': '[0-9A-Za-z_]', r'\W': '[^0-9A-Za-z_]',
            r'\s': r'[\t\n\v\f\r ]', r'\S': r'[^\t\n\v\f\r ]'}


def parser_of(library: Any, tokenizer: Any, kind: str, text: str, choices: list[str]) -> Any:
    """A matcher of the imported llguidance; ValueError with its explanation.

    `kind` is REGEX, CHOICES or GRAMMAR.
    """
    matcher = library.LLMatcher
    if kind == 'REGEX':
        grammar = matcher.grammar_from_regex(
            re.sub(r'\\.', lambda found: _CLASSES.get(found[0], found[0]), text))
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
