r"""Patterns of JSON Schema as regular expressions of a string's text in JSON, in Rust's notation.

The dialect is what ECMA-262 and Python's `re` agree on: \d is 0-9, \w is A-Z, a-z, 0-9 and _, \s
is blank, \t, \n, \v, \f and \r (\S leaves out all that ECMA calls white space), `.` no end of a
line. A pattern matches anywhere; ^ and $ stand at the ends of an alternative.
"""

from itertools import pairwise
import re
from typing import Any
import warnings

from .numbers import TooHard

try:
    from re import _parser as re_parser
except ImportError:         # Python 3.10
    import sre_parse as re_parser

Ranges = list[tuple[int, int]]      # of code points, in order, ends included

_LAST = 0x10FFFF
# What JSON writes otherwise: quote, backslash, and the control characters in hexadecimal.
_SHORT = {'"': r'\\"', '\\': r'\\\\', '\b': r'\\b', '\f': r'\\f', '\n': r'\\n', '\r': r'\\r',
          '\t': r'\\t'}
_WORD = [(0x30, 0x39), (0x41, 0x5A), (0x5F, 0x5F), (0x61, 0x7A)]
_BLANK = [(9, 13), (32, 32)]
_BLANK_EVERYWHERE = [*_BLANK, (0x1C, 0x1F), (0x85, 0x85), (0xA0, 0xA0), (0x1680, 0x1680),
                     (0x2000, 0x200A), (0x2028, 0x2029), (0x202F, 0x202F), (0x205F, 0x205F),
                     (0x3000, 0x3000), (0xFEFF, 0xFEFF)]
_ENDS_OF_LINES = [(10, 10), (13, 13), (0x2028, 0x2029)]
_SURROGATES = (0xD800, 0xDFFF)
# As a schema's pattern, so that the same translation makes them.
_DAY_OF_MONTH = ('(?:(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])|'
                 '(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)|02-(?:0[1-9]|1[0-9]|2[0-8]))')
_LEAP_YEAR = ('(?:[0-9]{2}(?:0[48]|[2468][048]|[13579][26])|'
              '(?:0[48]|[2468][048]|[13579][26])00)')
_DATE = (f'(?:(?:[1-9][0-9]{{3}}|0[1-9][0-9]{{2}}|00[1-9][0-9]|000[1-9])-{_DAY_OF_MONTH}'
         f'|{_LEAP_YEAR}-02-29)')
_TIME = (r'(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](?:\.[0-9]{1,9})?'
         r'(?:Z|[+-](?:[01][0-9]|2[0-3]):[0-5][0-9])')
_BYTE = '(?:25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])'
_LABEL = '[a-zA-Z0-9](?:[a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?'
_HEX = '[0-9a-fA-F]{1,4}'
_SPOKEN = "[a-zA-Z0-9_~!$&'()*+,;=:@.-]"
FORMATS = {
    'date': _DATE,
    'time': _TIME,
    'date-time': f'{_DATE}T{_TIME}',
    'duration': 'P(?:[0-9]+W|(?:[0-9]+Y(?:[0-9]+M)?(?:[0-9]+D)?|[0-9]+M(?:[0-9]+D)?|[0-9]+D)'
                '(?:T(?:[0-9]+H(?:[0-9]+M(?:[0-9]+S)?)?|[0-9]+M(?:[0-9]+S)?|[0-9]+S))?'
                '|T(?:[0-9]+H(?:[0-9]+M(?:[0-9]+S)?)?|[0-9]+M(?:[0-9]+S)?|[0-9]+S))',
    'ipv4': rf'(?:{_BYTE}\.){{3}}{_BYTE}',
    'ipv6': '(?:' + '|'.join(
        [f'(?:{_HEX}:){{7}}{_HEX}', f'(?:{_HEX}:){{1,7}}:', f':(?::{_HEX}){{1,7}}', '::']
        + [f'(?:{_HEX}:){{1,{8 - n}}}(?::{_HEX}){{1,{n - 1}}}' for n in range(2, 8)]) + ')',
    'uuid': '[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}',
    'hostname': rf'{_LABEL}(?:\.{_LABEL})*',
    'email': rf'[a-zA-Z0-9_%+-]+(?:\.[a-zA-Z0-9_%+-]+)*@{_LABEL}(?:\.{_LABEL})*',
    'uri': rf'[a-zA-Z][a-zA-Z0-9+.-]*:(?:/|{_SPOKEN})+(?:\?(?:[/?]|{_SPOKEN})*)?'
           rf'(?:#(?:[/?]|{_SPOKEN})*)?',
}


def string_text(least: int = 0, most: int | None = None) -> str:
    """Strings of so many characters, as their JSON text without the quotes."""
    end = '' if most is None else str(most)
    return f'{_ANY_CHARACTER}*' if not least and most is None else (
        f'{_ANY_CHARACTER}{{{least},{end}}}')


def quoted(text: str) -> str:
    """A string's JSON text without the quotes; not yet an expression."""
    return ''.join(_SHORT[letter].replace(r'\\', '\\') if letter in _SHORT
                   else f'\\u{ord(letter):04x}' if letter < ' ' else letter for letter in text)


def pattern_text(pattern: str, *, whole: bool = False, loose: bool = False) -> str:
    """What the pattern matches, or `whole` what it matches from end to end; raises TooHard.

    `loose`: what it matches in any dialect, for what must not be matched.
    """
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        try:
            tree = re_parser.parse(pattern, re.ASCII)
        except (re.error, OverflowError, ValueError) as error:     # a number of 4,301 digits
            raise TooHard(f'pattern {pattern[:200]!r} is not understood: {error}') from None
    if tree.state.flags & ~(re.ASCII | re_parser.SRE_FLAG_UNICODE):
        raise TooHard(f'pattern {pattern!r} has flags, which JSON Schema has not')
    if whole:
        return _sequence(list(tree), loose)
    return _anywhere(list(tree), loose)


def matches(pattern: str, text: str) -> bool:
    return re.search(pattern, text, re.ASCII) is not None


def _anywhere(items: list[Any], loose: bool) -> str:
    """The items between anything, unless anchors stand at their ends."""
    if len(items) == 1:
        name, value = str(items[0][0]), items[0][1]
        if name == 'BRANCH':
            return _either(_anywhere(list(option), loose) for option in value[1])
        if name == 'SUBPATTERN' and not value[1] and not value[2]:
            return _anywhere(list(value[3]), loose)
    begin = end = f'{_ANY_CHARACTER}*'
    while items and _is_anchor(items[0], 'AT_BEGINNING'):
        begin, items = '', items[1:]
    while items and _is_anchor(items[-1], 'AT_END'):
        # Python's $ stands before a last end of line, too.
        end, items = r'(?:\\n)?' if loose else '', items[:-1]
    return begin + _sequence(items, loose) + end


def _is_anchor(item: Any, name: str) -> bool:
    return str(item[0]) == 'AT' and str(item[1]) == name


def _either(options: Any) -> str:
    return f'(?:{"|".join(options)})'


def _sequence(items: Any, loose: bool) -> str:
    return ''.join(_item(str(name), value, loose) for name, value in items)


def _item(name: str, value: Any, loose: bool) -> str:
    if name in ('LITERAL', 'NOT_LITERAL', 'ANY', 'IN'):
        return _characters(_set_of(name, value, loose))
    if name == 'BRANCH':
        return _either(_sequence(option, loose) for option in value[1])
    if name == 'SUBPATTERN':
        if value[1] or value[2]:
            raise TooHard('a pattern has flags, which JSON Schema has not')
        return f'(?:{_sequence(value[3], loose)})'
    if name in ('MAX_REPEAT', 'MIN_REPEAT'):
        least, most, inner = value
        end = '' if most == re_parser.MAXREPEAT else int(most)
        return f'(?:{_sequence(inner, loose)}){{{int(least)},{end}}}'
    what = {'AT': 'an anchor within', 'GROUPREF': 'a back reference'}.get(name, 'look-around')
    raise TooHard(f'a pattern has {what}, which no grammar keeps to')


def _set_of(name: str, value: Any, loose: bool) -> Ranges:
    if name == 'ANY':
        return _complement(_ENDS_OF_LINES[:1] if loose else _ENDS_OF_LINES)
    if name == 'LITERAL':
        return [(value, value)]
    if name == 'NOT_LITERAL':
        return _complement([(value, value)])
    found: Ranges = []
    negated = False
    for kind, item in value:
        kind = str(kind)
        if kind == 'NEGATE':
            negated = True
        elif kind == 'LITERAL':
            found.append((item, item))
        elif kind == 'RANGE':
            found.append(item)
        else:
            found += _category(str(item), negated != loose)
    return _complement(found) if negated else _joined(found)


def _category(name: str, of_any: bool) -> Ranges:
    """What all dialects agree on, or what any of them has, as is meant within [^...]."""
    kind, _, rest = name.removeprefix('CATEGORY_').partition('_')
    wanted, complement = (rest, True) if kind == 'NOT' else (kind, False)
    if wanted == 'SPACE':
        plain = _BLANK_EVERYWHERE if complement != of_any else _BLANK
    else:
        plain = {'DIGIT': [(0x30, 0x39)], 'WORD': _WORD}[wanted]
    return _complement(plain) if complement else plain


def _joined(ranges: Ranges) -> Ranges:
    found: Ranges = []
    for first, last in sorted(ranges):
        if found and first <= found[-1][1] + 1:
            found[-1] = found[-1][0], max(last, found[-1][1])
        else:
            found.append((first, last))
    return found


def _complement(ranges: Ranges) -> Ranges:
    inner = _joined(ranges)
    ends = [(-1, -1), *inner, (_LAST + 1, _LAST + 1)]
    return [(before[1] + 1, after[0] - 1) for before, after in pairwise(ends)
            if before[1] + 1 < after[0]]


def _common(one: Ranges, other: Ranges) -> Ranges:
    return _complement(_complement(one) + _complement(other))


def _characters(ranges: Ranges) -> str:
    """One of these characters, as JSON writes it."""
    special = _complement(_PLAIN)
    plain = _common(ranges, _PLAIN)
    options = []
    if plain:
        options.append('[' + ''.join(
            rf'\x{{{first:X}}}' + (rf'-\x{{{last:X}}}' if last > first else '')
            for first, last in plain) + ']')
    hexadecimal = ['', '']      # by the first digit
    for first, last in _common(ranges, special):
        if first >= _SURROGATES[0]:
            continue
        for code in range(first, last + 1):
            letter = chr(code)
            if letter in _SHORT:
                options.append(_SHORT[letter])
            else:
                hexadecimal[code // 16] += f'{code % 16:x}'
    options += [rf'\\u00{high}[{low}]' for high, low in enumerate(hexadecimal) if low]
    if not options:
        raise TooHard('a pattern has an empty set of characters')
    return options[0] if len(options) == 1 else _either(options)


_PLAIN = _complement([(0, 0x1F), (0x22, 0x22), (0x5C, 0x5C), _SURROGATES])
_ANY_CHARACTER = _characters([(0, _LAST)])
