"""Sets of numbers, and the regular expressions of how they are written in JSON. All exact."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from fractions import Fraction
import math
from typing import Any

MOST_LISTED = 2_000     # multiples that are written out one by one
# Divisibility is decided by an automaton with as many states, which llguidance makes without limit.
_MOST_MULTIPLE = 10_000
MOST_DIGITS = 60        # of a bound, before or behind the point
_SURE_DIGITS = 15       # two decimals of so many digits are two doubles
_ALL_DIGITS = 17        # of a double
_LEAST_DECIMALS = 9     # however far away a bound is
_FREE_DIGITS = 30       # of a whole number without bounds
_FAR = 10 ** _FREE_DIGITS

_PLAIN = r'-?(?:0|[1-9][0-9]{0,14})(?:\.[0-9]{1,15})?'
_SCIENTIFIC = (r'-?[1-9](?:\.[0-9]{1,16})?[eE](?:\+?(?:[0-9]{1,2}|[12][0-9]{2}|30[0-7])'
               r'|-(?:[0-9]{1,2}|[12][0-9]{2}|30[0-7]))')


class TooHard(ValueError):
    """A schema that no grammar is made of, with the reason as a person would read it."""


@dataclass(frozen=True)
class Numbers:
    """The numbers that meet all of this; None: no such limit."""

    kind: str = 'any'       # or 'integer', or 'fraction': no integer
    low: Fraction | None = None
    high: Fraction | None = None
    low_open: bool = False  # the bound itself is not one of them
    high_open: bool = False
    multiple: Fraction | None = None
    values: frozenset[Fraction] | None = None   # no others
    excluded: frozenset[Fraction] = frozenset()
    not_multiples: frozenset[Fraction] = frozenset()    # of any of these

    def __contains__(self, number: Fraction) -> bool:
        whole = number.denominator == 1
        return ((self.kind == 'any' or whole == (self.kind == 'integer'))
                and (self.low is None or number > self.low
                     or (number == self.low and not self.low_open))
                and (self.high is None or number < self.high
                     or (number == self.high and not self.high_open))
                and (self.multiple is None or _is_multiple(number, self.multiple))
                and (self.values is None or number in self.values)
                and number not in self.excluded
                and not any(_is_multiple(number, step) for step in self.not_multiples))

    def both(self, other: 'Numbers') -> 'Numbers | None':
        """What both hold, None for nothing."""
        kinds = {self.kind, other.kind} - {'any'}
        if len(kinds) == 2:
            return None
        low, low_open = _narrower((self.low, self.low_open), (other.low, other.low_open), 1)
        high, high_open = _narrower((self.high, self.high_open), (other.high, other.high_open), -1)
        multiples = [item.multiple for item in (self, other) if item.multiple is not None]
        found = Numbers(
            kinds.pop() if kinds else 'any', low, high, low_open, high_open,
            _common_multiple(multiples) if multiples else None, None,
            self.excluded | other.excluded, self.not_multiples | other.not_multiples)
        if found.multiple is not None:
            if found.kind == 'integer':
                found = replace(found, multiple=_common_multiple([found.multiple, Fraction(1)]))
            if found.multiple.denominator == 1:
                if found.kind == 'fraction':
                    return None
                found = replace(found, kind='integer')
            if any(_is_multiple(found.multiple, step) for step in found.not_multiples):
                return None
        lists = [item.values for item in (self, other) if item.values is not None]
        if lists:
            values = frozenset.intersection(*lists)
            values = frozenset(value for value in values if value in found)
            return Numbers(values=values) if values else None
        if low is not None and high is not None and (
                low > high or (low == high and low not in found)):
            return None
        return found

    def listed(self) -> list[Fraction] | None:
        """All of them in order where they are few, else None."""
        if self.values is not None:
            return sorted(self.values)
        step = self.multiple or Fraction(1)
        if self.low is None or self.high is None or (self.multiple is None
                                                     and self.kind != 'integer'):
            return None
        first, last = math.ceil(self.low / step), math.floor(self.high / step)
        if last - first >= MOST_LISTED:
            return None
        return [number for number in (step * k for k in range(first, last + 1)) if number in self]

    def terms(self) -> tuple[list[str], str]:
        """Regular expressions that hold of them all at once, and one of what is not among them.

        No expression, where there is no number. Raises TooHard.
        """
        if self.values is not None or self.multiple is not None or self.not_multiples:
            listed = self.listed()
            if listed is not None:
                return [_one_of(map(written, listed))] if listed else [], ''
        excluded = '|'.join(
            f'{"-?" * (number == 0)}{_escaped(written(number))}'
            + (r'(?:\.0+)?' if number.denominator == 1 else '0*')
            for number in sorted(self.excluded))
        excluded = '|'.join([*[excluded] * bool(excluded), *(
            rf'(?:{_multiples(step)})(?:\.0+)?' for step in sorted(self.not_multiples))])
        found = [self._plain(), self._divisible()]
        if self.kind == 'fraction':
            found.append(r'-?[0-9]+\.[0-9]*[1-9][0-9]*')
        return ([] if found[0] == '' else [text for text in found if text]), excluded

    def llguidance_schema(self) -> dict[str, Any] | None:
        """What llguidance gets right of what `terms` finds too hard: any number of multiples."""
        bounds = {name: math.floor(bound) + (
                      is_open * inward if bound.denominator == 1 else inward > 0)
                  for name, bound, is_open, inward in (
                      ('minimum', self.low, self.low_open, 1),
                      ('maximum', self.high, self.high_open, -1)) if bound is not None}
        decimals = _decimals_of(self.multiple)
        scaled = float(self.multiple)
        for _ in range(decimals):       # as it counts decimals; of 0.07 it finds too many
            scaled *= 10
        if scaled != self.multiple * 10 ** decimals or scaled > _MOST_MULTIPLE or (
                decimals > _SURE_DIGITS) or (
                self.excluded or self.not_multiples or self.kind == 'fraction') or (
                bounds and self.kind == 'any') or any(
                bound < 0 or bound > 1 << 53 for bound in bounds.values()):
            return None
        return {'type': 'integer' if self.kind == 'integer' else 'number', **bounds,
                'multipleOf': float(self.multiple)}

    def _plain(self) -> str:
        near = self._without_far_bounds()
        if near.low is not None or near.high is not None or near.multiple is not None:
            return near._written_out()
        if near.kind == 'integer':
            return rf'0|-?[1-9][0-9]{{0,{_FREE_DIGITS - 1}}}'
        if near != self or near.excluded or near.not_multiples or near.kind == 'fraction':
            return _PLAIN
        return f'{_PLAIN}|{_SCIENTIFIC}'

    def _without_far_bounds(self) -> 'Numbers':
        """Without bounds that nothing written out comes to: the range of float or double.

        Their digits would take the place of those behind the point.
        """
        if self.kind == 'integer':
            return self
        low, high = self.low, self.high
        if self.high is not None and self.high >= 10 * _FAR and (low is None or low < _FAR):
            high = None
        if self.low is not None and self.low <= -10 * _FAR and (
                self.high is None or self.high > -_FAR):
            low = None
        return replace(self, low=low, high=high)

    def _written_out(self) -> str:
        decimals = 0 if self.kind == 'integer' else self._decimals()
        grid = 10 ** decimals
        low = self._on_grid(self.low, grid, 1)
        high = self._on_grid(self.high, grid, -1)
        parts = []
        if low is None or low < 0:
            most = None if low is None else -low
            least = 1 if high is None or high >= 0 else -high
            parts += [f'-(?:{part})' for part in _magnitudes(least, most, decimals)]
        if high is None or high >= 0:
            parts += _magnitudes(max(low or 0, 0), high, decimals)
        return '|'.join(parts)

    def _decimals(self) -> int:
        """Digits behind the point: so few that a bound is kept when read as doubles, too."""
        if self.multiple is not None:
            return _decimals_of(self.multiple)
        bounds = [bound for bound in (self.low, self.high) if bound is not None]
        whole = max(len(str(abs(math.trunc(bound)))) for bound in bounds)
        closed = [_decimals_of(bound) for bound, is_open in (
            (self.low, self.low_open), (self.high, self.high_open))
            if bound is not None and not is_open]
        sure = _SURE_DIGITS if self.low_open or self.high_open else _ALL_DIGITS
        return min(max(_LEAST_DECIMALS, sure - whole, *closed), MOST_DIGITS)

    def _on_grid(self, bound: Fraction | None, grid: int, inward: int) -> int | None:
        if bound is None:
            return None
        is_open = self.low_open if inward > 0 else self.high_open
        if is_open and self.kind == 'integer':
            return math.floor(bound) + 1 if inward > 0 else math.ceil(bound) - 1
        if is_open:     # what is read as another double
            bound = Fraction(math.nextafter(_as_double(bound), inward * math.inf))
        return math.ceil(bound * grid) if inward > 0 else math.floor(bound * grid)

    def _divisible(self) -> str:
        """An expression that holds of multiples, whatever their size; '' where none is needed.

        Raises TooHard.
        """
        if self.multiple is None or self.listed() is not None:
            return ''
        if 1 / self.multiple in (1, 10, 100, 1000):
            return ''       # it has as many decimals
        return _multiples(self.multiple)


def _is_multiple(number: Fraction, step: Fraction) -> bool:
    return (number / step).denominator == 1


def _multiples(step: Fraction) -> str:
    """An expression of plain decimals that holds of the multiples only; raises TooHard."""
    parts = 1 / step
    if step.denominator == 1 and (digits := _digits_of_endings(int(step))) is not None:
        endings = [str(number).rjust(digits, '0') if digits else ''
                   for number in range(0, 10 ** digits, int(step))]
        return '-?(?:' + '|'.join(
            [str(int(ending or 0)) for ending in endings]
            + [f'[0-9]*{ending}' for ending in endings]) + ')'
    if parts.denominator == 1 and (digits := _digits_of_endings(int(parts))) is not None:
        behind = [written(step * number)[1:] for number in range(1, int(parts))]
        return '-?[0-9]+(?:' + '|'.join(f'{_escaped(text)}0*' for text in behind) + ')?'
    raise TooHard(f'multipleOf {written(step)} has more than {MOST_LISTED} multiples there; '
                  'give minimum and maximum closer to each other')


def written(number: Fraction) -> str:
    """The shortest JSON of it."""
    if number.denominator == 1:
        whole = str(number.numerator)
        if len(whole) <= _FREE_DIGITS:
            return whole
        digits = whole.rstrip('0')
        sign, digits = ('-', digits[1:]) if digits[0] == '-' else ('', digits)
        exponent = len(whole) - len(sign) - 1
        return f'{sign}{digits[0]}{"." + digits[1:] if digits[1:] else ""}e{exponent}'
    decimals = _decimals_of(number)
    scaled = number.numerator * 10 ** decimals // number.denominator
    digits = str(abs(scaled))
    sign = '-' if scaled < 0 else ''
    if decimals > _FREE_DIGITS:
        exponent = len(digits) - 1 - decimals
        return f'{sign}{digits[0]}{"." + digits[1:] if digits[1:] else ""}e{exponent}'
    digits = digits.rjust(decimals + 1, '0')
    return f'{sign}{digits[:-decimals]}.{digits[-decimals:]}'


def _escaped(text: str) -> str:
    return text.replace('.', r'\.')


def _one_of(texts: Iterable[str]) -> str:
    return '|'.join(map(_escaped, texts))


def _decimals_of(number: Fraction) -> int:
    """Digits behind the point; raises TooHard for what no decimal is."""
    rest, count = number.denominator, 0
    while rest % 10 == 0:
        rest, count = rest // 10, count + 1
    while rest % 2 == 0:
        rest, count = rest // 2, count + 1
    while rest % 5 == 0:
        rest, count = rest // 5, count + 1
    if rest != 1 or (10 ** count * number).denominator != 1:
        raise TooHard(f'{number} has no end as a decimal')
    return count


def _narrower(one: tuple[Fraction | None, bool], other: tuple[Fraction | None, bool],
              inward: int) -> tuple[Fraction | None, bool]:
    if one[0] is None or other[0] is None:
        return other if one[0] is None else one
    return max(one, other, key=lambda bound: (inward * bound[0], bound[1]))


def _common_multiple(multiples: list[Fraction]) -> Fraction:
    scale = math.lcm(*(multiple.denominator for multiple in multiples))
    return Fraction(math.lcm(*(int(multiple * scale) for multiple in multiples)), scale)


def _as_double(bound: Fraction) -> float:
    if abs(bound) >= 10 ** MOST_DIGITS:
        raise TooHard(f'a bound has more than {MOST_DIGITS} digits')
    return float(bound)


def _digits_of_endings(step: int) -> int | None:
    """How many last digits tell a multiple, where they are few."""
    return next((digits for digits in range(4) if 10 ** digits % step == 0), None)


def _magnitudes(low: int, high: int | None, decimals: int) -> list[str]:
    """Expressions of the decimals in [low, high] / 10^decimals; both are not negative."""
    if high is not None and low > high:
        return []
    grid = 10 ** decimals
    first, first_rest = divmod(low, grid)
    if max(len(str(first)), len(str(high or 0)) - decimals) > MOST_DIGITS:
        raise TooHard(f'a bound has more than {MOST_DIGITS} digits')
    free = _behind(None, None, decimals)
    if high is None:
        parts = [f'{first}{_behind(first_rest, None, decimals)}'] if first_rest else []
        return [*parts, f'(?:{_wholes(first + bool(first_rest), None)}){free}']
    last, last_rest = divmod(high, grid)
    if first == last:
        return [f'{first}{_behind(first_rest, last_rest, decimals)}']
    parts = []
    if first_rest:
        parts.append(f'{first}{_behind(first_rest, None, decimals)}')
        first += 1
    if last_rest != grid - 1:
        parts.append(f'{last}{_behind(None, last_rest, decimals)}')
        last -= 1
    if first <= last:
        parts.append(f'(?:{_wholes(first, last)}){free}')
    return parts


def _behind(low: int | None, high: int | None, decimals: int) -> str:
    """The point and its digits, or nothing, in [low, high] as the digits padded with zeros."""
    if not decimals:
        return ''
    least = None if not low else str(low).rjust(decimals, '0')
    most = None if high is None else str(high).rjust(decimals, '0')
    digits = _digits(least, most, decimals, first=True)
    return rf'\.(?:{digits})' if least else rf'(?:\.(?:{digits}))?'


def _digits(least: str | None, most: str | None, left: int, first: bool = False) -> str:
    """Up to `left` digits, one at least where they are the `first`."""
    least = None if least is None or not least.strip('0') else least
    most = None if most is None or not most.strip('9') else most
    if least is None and most is None:
        return f'[0-9]{{{int(first)},{left}}}' if left else ''
    options = []
    low, high = int(least[0]) if least else 0, int(most[0]) if most else 9
    if least and most and low == high:
        options.append(f'{low}{_digits(least[1:], most[1:], left - 1)}')
    else:
        if least:
            options.append(f'{low}{_digits(least[1:], None, left - 1)}')
        if most:
            options.append(f'{high}{_digits(None, most[1:], left - 1)}')
        low, high = low + bool(least), high - bool(most)
        if low <= high:
            options.append(f'{_class(low, high)}{_digits(None, None, left - 1)}')
    ends = not first and not least      # here, and zeros are meant
    return f'(?:{"|".join(options)})' + '?' * ends


def _class(low: int, high: int) -> str:
    return str(low) if low == high else f'[{low}-{high}]'


def _wholes(low: int, high: int | None) -> str:
    """Whole numbers in [low, high], not negative."""
    length = len(str(low))
    if high is None:
        longer = f'[1-9][0-9]{{{length},{max(_FREE_DIGITS, length + 1) - 1}}}'
        return '|'.join([*_same_length(str(low), '9' * length), longer])
    longest = len(str(high))
    if length == longest:
        return '|'.join(_same_length(str(low), str(high)))
    between = [f'[1-9][0-9]{{{length},{longest - 2}}}'] if longest - length > 1 else []
    return '|'.join([*_same_length(str(low), '9' * length), *between,
                     *_same_length('1' + '0' * (longest - 1), str(high))])


def _same_length(low: str, high: str) -> list[str]:
    if not low:
        return ['']
    if not low[1:].strip('0') and not high[1:].strip('9'):
        rest = len(low) - 1
        return [_class(int(low[0]), int(high[0])) + (f'[0-9]{{{rest}}}' if rest else '')]
    if low[0] == high[0]:
        return [f'{low[0]}(?:{"|".join(_same_length(low[1:], high[1:]))})']
    first, last, parts = int(low[0]), int(high[0]), []
    if low[1:].strip('0'):
        parts.append(f'{first}(?:{"|".join(_same_length(low[1:], "9" * (len(low) - 1)))})')
        first += 1
    if high[1:].strip('9'):
        parts.append(f'{last}(?:{"|".join(_same_length("0" * (len(low) - 1), high[1:]))})')
        last -= 1
    if first <= last:
        parts.append(_class(first, last) + f'[0-9]{{{len(low) - 1}}}')
    return parts
