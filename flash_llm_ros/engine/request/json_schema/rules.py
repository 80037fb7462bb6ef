"""The rules of a grammar in llguidance's Lark, without those that lead nowhere."""

from collections import defaultdict
from dataclasses import dataclass
import json

from .numbers import TooHard

MOST_RULES = 6_000


@dataclass(frozen=True)
class Repeated:
    """A rule so many times; None: any number."""

    rule: str
    low: int
    high: int | None


Symbol = str | Repeated
Option = tuple[Symbol, ...]


class Rules:
    """Rules are lower case and have options, which may call others; terminals are upper case."""

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
        self._rules: dict[str, list[Option]] = {}
        self._raw: dict[str, tuple[str, tuple[str, ...]]] = {}  # as it stands, with what it needs
        self._terminals: dict[str, str] = {}                    # name by expression
        self._count = 0

    def new(self) -> str:
        """A name for a rule."""
        self._count += 1
        if self._count > MOST_RULES:
            raise TooHard(f'it takes more than {MOST_RULES} rules; make it simpler')
        return f'{self._prefix}{self._count}'

    def add(self, name: str, options: list[Option]) -> str:
        self._rules[name] = options
        return name

    def add_raw(self, name: str, body: str, needs: tuple[str, ...] = ()) -> str:
        """A rule in Lark's own words."""
        self._raw[name] = body, needs
        return name

    def terminal(self, expression: str) -> str:
        """The name of a terminal."""
        return self._terminals.setdefault(
            expression, f'{self._prefix.upper()}{len(self._terminals)}')

    def lark(self, start: str, empty: set[str]) -> str:
        """The text of all that leads to an answer; `empty` terminals have none.

        Raises TooHard where none does.
        """
        good = self._productive(empty)
        if start not in good:
            raise TooHard('there is no answer that it allows')
        lines, left, done = [], [start], {start}
        while left:
            name = left.pop()
            if name in self._raw:
                body, needs = self._raw[name]
                lines.append(f'{name}{body}')
                left += [need for need in needs if need not in done]
                done.update(needs)
                continue
            texts = []
            for option in self._rules[name]:
                if not self._leads(option, good, empty):
                    continue
                parts = []
                for symbol in option:
                    rule = symbol.rule if isinstance(symbol, Repeated) else symbol
                    if (rule not in good and rule in self._rules) or (
                            isinstance(symbol, Repeated) and symbol.high == 0):
                        continue            # a repetition that may, or must, be left out
                    if (rule in self._rules or rule in self._raw) and rule not in done:
                        done.add(rule)
                        left.append(rule)
                    parts.append(_text(symbol))
                texts.append(' '.join(parts) or '""')
            lines.append(f'{name}: ' + ' | '.join(dict.fromkeys(texts)))
        used = '\n'.join(lines)
        lines += [f'{name}: {text}' for text, name in self._terminals.items()
                  if name not in empty and name in used]
        return '\n'.join(lines)

    def _leads(self, option: Option, good: set[str], empty: set[str]) -> bool:
        return all(self._ends(symbol, good, empty) for symbol in option)

    def _ends(self, symbol: Symbol, good: set[str], empty: set[str]) -> bool:
        if isinstance(symbol, Repeated):
            return not symbol.low or self._ends(symbol.rule, good, empty)
        if symbol in self._rules or symbol in self._raw:
            return symbol in good
        return symbol not in empty

    def _productive(self, empty: set[str]) -> set[str]:
        callers: dict[str, set[str]] = defaultdict(set)
        for name, options in self._rules.items():
            for option in options:
                for symbol in option:
                    callers[symbol.rule if isinstance(symbol, Repeated) else symbol].add(name)
        good = set(self._raw)
        left = [*self._rules]
        while left:
            name = left.pop()
            if name not in good and any(self._leads(option, good, empty)
                                        for option in self._rules[name]):
                good.add(name)
                left += callers[name]
        return good


def literal(text: str) -> str:
    """The text as it stands, in Lark."""
    return json.dumps(text, ensure_ascii=False).replace('\x7f', r'\u007f')


def expression(text: str) -> str:
    """A regular expression in Lark."""
    return '/(?:' + text.replace('/', r'\/') + ')/'


def _text(symbol: Symbol) -> str:
    if isinstance(symbol, str):
        return symbol
    return f'{symbol.rule}{{{symbol.low},{"" if symbol.high is None else symbol.high}}}'
