"""The grammar of a schema's answers, in llguidance's Lark."""

from collections.abc import Callable
from itertools import combinations
from typing import Any

from .numbers import Numbers, TooHard, written
from .patterns import pattern_text, quoted, string_text
from .reader import Reader, load
from .rules import Option, Repeated, Rules, expression, literal
from .values import ANYTHING, NOTHING, Arrays, Contained, Need, Objects, Strings, Words

MOST_UNIQUE = 63            # different items of an array without repetitions
_MOST_PATTERNS = 4          # of patternProperties, which may overlap in all ways
_MOST_STATES = 3_000        # of one array or object

IsEmpty = Callable[[str], bool]


def grammar_of(text: str, is_empty: IsEmpty, prefix: str = 'j', blank: str = '') -> str:
    """A grammar whose first rule derives the JSON texts that validate, and no other.

    `is_empty` says whether nothing matches a terminal in Lark's notation; `blank` stands behind
    commas and colons. Raises TooHard.
    """
    return _Grammar(Reader(load(text)), Rules(prefix), blank).text(is_empty)


class _Grammar:
    def __init__(self, reader: Reader, rules: Rules, blank: str) -> None:
        self._reader, self._rules = reader, rules
        self._comma, self._colon = f'",{blank}"', f':{blank}'
        self._names: dict[Need, str] = {}
        self._left: list[Need] = []
        self._doubtful: dict[str, str] = {}     # terminals that may match nothing

    def text(self, is_empty: IsEmpty) -> str:
        start = self._value(self._reader.root)
        while self._left:
            need = self._left.pop()
            self._rules.add(self._names[need], self._options(need))
        empty = {name for name, text in self._doubtful.items() if is_empty(text)}
        return self._rules.lark(start, empty)

    def _value(self, need: Need) -> str:
        """The rule of a value that meets the need."""
        if need not in self._names:
            self._names[need] = self._rules.new()
            self._left.append(need)
        return self._names[need]

    def _terminal(self, text: str, doubtful: bool) -> str:
        name = self._rules.terminal(text)
        if doubtful:
            self._doubtful[name] = text
        return name

    def _options(self, need: Need) -> list[Option]:
        if need >= NOTHING:
            return []
        options: list[Option] = []
        plain: list[str] = []
        for values in self._reader.values(need):
            if isinstance(values, Words):
                plain += [literal(word) for word in sorted(values.words)]
            elif isinstance(values, Numbers):
                text, doubtful, symbol = _number(values)
                if symbol:
                    options.append((symbol,))
                elif doubtful:
                    options.append((self._terminal(text, True),))
                elif text:
                    plain.append(text)
            elif isinstance(values, Strings):
                text, doubtful = _string(values)
                if doubtful:
                    options.append((self._terminal(text, True),))
                else:
                    plain.append(text)
            elif isinstance(values, Arrays):
                options.append(('"["', self._array(values), '"]"'))
            else:
                options.append(('"{"', self._object(values), '"}"'))
        if plain:
            options.insert(0, (self._terminal(' | '.join(plain), False),))
        return options

    # Arrays

    def _array(self, array: Arrays) -> str:
        if array.high is not None and array.high <= len(array.prefix):
            array = Arrays(array.prefix[:array.high], NOTHING, array.low, array.high,
                           array.unique, array.contained)
        unique = array.unique and (array.high is None or array.high > 1)
        if array.contained and unique:
            raise TooHard('contains and uniqueItems are both there, which no grammar keeps to')
        if unique:
            return self._unique(array)
        return self._containing(array) if array.contained else self._list(array)

    def _list(self, array: Arrays) -> str:
        count, low, high = len(array.prefix), array.low, array.high
        rest = Repeated(self._rules.add(self._rules.new(), [(self._comma,
                                                             self._value(array.items))]),
                        max(0, low - max(count, 1)),
                        None if high is None else max(0, high - max(count, 1)))
        if count:
            tail: list[Option] = [(rest,)]
        else:
            tail = [] if low else [()]
            if high != 0:
                tail.append((self._value(array.items), rest))
        name = self._rules.add(self._rules.new(), tail)
        for index in range(count - 1, -1, -1):
            item = self._value(array.prefix[index])
            options: list[Option] = [(*([self._comma] if index else []), item, name)]
            if index >= low:
                options.append(())
            name = self._rules.add(self._rules.new(), options)
        return name

    def _containing(self, array: Arrays) -> str:
        """States: how many items there are, how many of them are what must be contained."""
        if len(array.contained) > 1:
            raise TooHard('several contains hold of one array, which no grammar keeps to')
        part, = array.contained
        last = max(len(array.prefix), array.low, 1) if array.high is None else array.high
        most = part.low if part.high is None else part.high
        if (last + 1) * (most + 1) > _MOST_STATES:
            raise TooHard('contains has too large limits beside it')
        names = {(count, hits): self._rules.new()
                 for count in range(last + 1) for hits in range(most + 1)}
        for (count, hits), name in names.items():
            options: list[Option] = []
            if count >= array.low and hits >= part.low:
                options.append(())
            comma = (self._comma,) if count else ()
            after = min(count + 1, last)
            if array.high is None or count < array.high:
                need = array.need(count)
                if part.high is None or hits < part.high:
                    options.append((*comma, self._value(need | part.need),
                                    names[after, min(hits + 1, most)]))
                other = need if part.high is None else need | _opposite(part)
                options.append((*comma, self._value(other), names[after, hits]))
            self._rules.add(name, options)
        return names[0, 0]

    def _unique(self, array: Arrays) -> str:
        """Items of an enumeration, no two alike: a rule with a bit for each value."""
        count = len(array.prefix)
        needs = [*array.prefix, *([array.items] if array.items != NOTHING else [])]
        lists = [self._listed(need) for need in needs]
        if count and array.items == NOTHING and (array.high is None or array.high > count):
            array = Arrays(array.prefix, NOTHING, array.low, count, True)
        bits = {text: bit for bit, text in enumerate(dict.fromkeys(
            text for texts in lists for text in texts))}
        if len(bits) > MOST_UNIQUE:
            raise TooHard(f'uniqueItems has {len(bits)} different items; it must have at most '
                          f'{MOST_UNIQUE}')
        high = len(bits) if array.high is None else min(array.high, len(bits))
        if array.low > high:
            return self._rules.add(self._rules.new(), [])
        places = [set(lists[min(index, len(lists) - 1)]) for index in range(array.low)]
        for index, texts in enumerate(places):
            if sum(not texts.isdisjoint(before) for before in places[:index]) >= len(texts):
                raise TooHard('uniqueItems would find no value left for an item that has to come; '
                              'give the first items that have the fewest')
        names = [self._rules.new() for _ in range(len(lists) + 1)]
        for index, name in enumerate(names):
            texts = lists[min(index, len(lists) - 1)] if index < len(lists) or (
                array.items != NOTHING) else []
            options = [f'"" %if bit_count_ge(_, {array.low})']
            following = names[min(index + 1, len(names) - 1)]
            comma = '' if not index else f'{self._comma} '
            options += [
                f'{comma}{literal(text)} {following}::set_bit({bits[text]}) '
                f'%if and(bit_clear({bits[text]}), bit_count_lt(_, {high}))' for text in texts]
            self._rules.add_raw(name, '::_: ' + '\n  | '.join(options), (following,))
        return self._rules.add_raw(self._rules.new(), f': {names[0]}::0', (names[0],))

    def _listed(self, need: Need) -> list[str]:
        """The values that meet the need, as JSON; raises TooHard where they are no short list."""
        found: list[str] = []
        for values in self._reader.values(need):
            if isinstance(values, Words):
                found += sorted(values.words)
            elif isinstance(values, Numbers) and values.listed() is not None:
                found += [written(number) for number in values.listed()]
            elif isinstance(values, Strings) and values.values is not None:
                found += [f'"{quoted(text)}"' for text in sorted(values.values)]
            else:
                raise TooHard('uniqueItems needs items that are an enumeration')
        return found

    # Objects

    def _object(self, found: Objects) -> str:
        """States: the next of the known properties, and how many there are so far."""
        names = self._reader.values(found.names) if found.names else None
        known = []
        for name in found.all_names():
            if names is not None and not any(
                    isinstance(values, Strings) and name in values for values in names):
                if name in found.required:
                    return self._rules.add(self._rules.new(), [])
                continue
            known.append((f'"{quoted(name)}"{self._colon}', found.need(name),
                          name in found.required))
        most = max(1, found.low, found.high or 0)
        if most > 1 and (len(known) + 1) * (most + 1) > _MOST_STATES:
            raise TooHard('it has too many properties for minProperties or maxProperties')
        others = self._others(found, names)
        # What follows when there are so many; properties that have to come need no rule of their
        # own, whose chain would be too long for llguidance.
        after: dict[int, Option] = {count: (self._rest(found, others, count),)
                                    for count in range(min(len(known), most) + 1)}
        for index in range(len(known) - 1, -1, -1):
            key, need, required = known[index]
            item = (literal(key), self._value(need))
            states: dict[int, Option] = {}
            for count in range(min(index, most) + 1):
                options: list[Option] = []
                if found.high is None or count < found.high:
                    options.append((*([self._comma] if count else []), *item,
                                    *after[min(count + 1, most)]))
                if not required:
                    options.append(after[count])
                states[count] = options[0] if required and options else (
                    self._rules.add(self._rules.new(), options),)
            after = states
        return self._rules.add(self._rules.new(), [after[0]])

    def _rest(self, found: Objects, others: str, count: int) -> str:
        """Behind the known properties. Of the others one counts: the next may have its name."""
        options: list[Option] = []
        if count >= found.low:
            options.append(())
        room = None if found.high is None else found.high - count
        if count + 1 >= found.low and room != 0:
            more = self._rules.add(self._rules.new(), [(self._comma, others)])
            rest = Repeated(more, 0, None if room is None else room - 1)
            options.append((*([self._comma] if count else []), others, rest))
        return self._rules.add(self._rules.new(), options)

    def _others(self, found: Objects, names: list[Any] | None) -> str:
        """The rule of one property that is not known by its name."""
        known = [f'"{quoted(name)}"{self._colon}' for name in found.all_names()]
        patterns = list(dict.fromkeys(
            pattern for part in found.properties for pattern, _ in part.patterns))
        if len(patterns) > _MOST_PATTERNS:
            raise TooHard(f'patternProperties holds {len(patterns)} patterns; it must hold at '
                          f'most {_MOST_PATTERNS}')
        options: list[Option] = []
        for count in range(len(patterns) + 1):
            for chosen in combinations(patterns, count):
                need = ANYTHING.union(*(_need_of(part, chosen) for part in found.properties))
                if need >= NOTHING:
                    continue
                rest = [pattern for pattern in patterns if pattern not in chosen]
                terms = [self._key(pattern_text(pattern)) for pattern in chosen]
                terms += [f'~{self._key(pattern_text(pattern, loose=True))}'
                          for pattern in rest]
                if known:
                    terms.append(f'~({" | ".join(map(literal, known))})')
                if names is None:
                    text = ' & '.join([*([] if count else [self._key(string_text())]), *terms])
                    options.append((self._terminal(text, bool(terms)), self._value(need)))
                    continue
                for values in names:
                    if isinstance(values, Strings):
                        text = ' & '.join([_string(values, self._colon)[0], *terms])
                        options.append((self._terminal(text, True), self._value(need)))
        return self._rules.add(self._rules.new(), options)

    def _key(self, text: str) -> str:
        return expression(f'"(?:{text})"{self._colon}')


def _need_of(part: Any, chosen: tuple[str, ...]) -> Need:
    """Of a name that these patterns match, and no others."""
    needs = [need for pattern, need in part.patterns if pattern in chosen]
    return ANYTHING.union(*needs) if needs else part.others


def _opposite(part: Contained) -> Need:
    if part.need in (ANYTHING, NOTHING):
        return NOTHING if part.need == ANYTHING else ANYTHING
    (number, positive), = part.need
    return frozenset({(number, not positive)})


def _string(values: Strings, behind: str = '') -> tuple[str, bool]:
    """A terminal's text, and whether it may match nothing."""
    if values.values is not None:
        return '(' + ' | '.join(literal(f'"{quoted(text)}"{behind}')
                                for text in sorted(values.values)) + ')', False
    terms = [pattern_text(pattern, whole=whole) for pattern, whole in sorted(values.patterns)]
    if values.low or values.high is not None or not terms:
        terms.append(string_text(values.low, values.high))
    texts = [expression(f'"(?:{term})"{behind}') for term in terms]
    texts += ['~' + expression(f'"(?:{pattern_text(pattern, loose=True)})"{behind}')
              for pattern in sorted(values.unlike)]
    if values.excluded:
        texts.append('~(' + ' | '.join(literal(f'"{quoted(text)}"{behind}')
                                       for text in sorted(values.excluded)) + ')')
    return ' & '.join(texts), len(texts) > 1


def _number(values: Numbers) -> tuple[str, bool, str]:
    """A terminal's text, whether it may match nothing, or instead a symbol of a grammar."""
    try:
        terms, excluded = values.terms()
    except TooHard:
        schema = values.llguidance_schema() if values.multiple is not None else None
        if schema is None:
            raise
        return '', False, f'%json {schema}'.replace("'", '"')
    texts = [expression(term) for term in terms]
    if texts and excluded:
        texts.append('~' + expression(excluded))
    return ' & '.join(texts), len(texts) > 1, ''
