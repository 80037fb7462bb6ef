"""Line plots as SVG: shown by browsers and in Markdown, with no script or font from elsewhere."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
import math

Point = tuple[float, float]
COLOURS = ('#0072b2', '#d55e00', '#009e73', '#cc79a7', '#e69f00', '#56b4e9')    # Okabe and Ito's
WIDTH, HEIGHT = 640, 300
LEFT, RIGHT, TOP, BOTTOM = 60, 170, 34, 46      # pixels around the axes; right are the names


@dataclass(frozen=True)
class Line:
    """A line of a plot with its name."""

    name: str
    points: Sequence[Point]


def line_plot(title: str, x_label: str, y_label: str, lines: Sequence[Line], *,
              x_ticks: dict[float, str] | None = None) -> str:
    """Return the plot; its vertical axis begins at 0.

    `x_ticks` are values with their labels, on an axis of logarithms; without them round numbers
    stand on a plain one. `lines` have at least one point, at most as many as there are COLOURS.
    """
    xs = [x for line in lines for x, _ in line.points]
    high = max(y for line in lines for _, y in line.points) or 1.0
    y_at = _scale(0.0, high, HEIGHT - BOTTOM, TOP)
    if x_ticks is None:
        to_axis: Callable[[float], float] = float
        x_ticks = {tick: f'{tick:g}' for tick in _round_numbers(min(xs), max(xs))}
    else:
        to_axis = math.log
    scale = _scale(to_axis(min(xs)), to_axis(max(xs)), LEFT, WIDTH - RIGHT)

    def x_at(value: float) -> float:
        return scale(to_axis(value))

    parts = [_text(LEFT, 18, title, 'start', ' font-weight="bold"'),
             _text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 8, x_label)]
    parts += [_text(x_at(tick), HEIGHT - BOTTOM + 18, label) for tick, label in x_ticks.items()]
    for tick in _round_numbers(0.0, high):
        parts += [f'<path d="M{LEFT} {y_at(tick):.1f}H{WIDTH - RIGHT}" stroke="#ccc"/>',
                  _text(LEFT - 6, y_at(tick) + 4, f'{tick:g}', 'end')]
    parts.append(f'<text transform="translate(14 {(TOP + HEIGHT - BOTTOM) / 2:.0f}) rotate(-90)" '
                 f'text-anchor="middle">{escape(y_label)}</text>')
    for row, (line, colour) in enumerate(zip(lines, COLOURS, strict=False)):
        places = [(x_at(x), y_at(y)) for x, y in line.points]
        path = 'L'.join(f'{x:.1f} {y:.1f}' for x, y in places)
        parts.append(f'<path d="M{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in places]
        height = TOP + 8 + 20 * row
        parts += [f'<rect x="{WIDTH - RIGHT + 14}" y="{height - 6}" width="12" height="12" '
                  f'fill="{colour}"/>', _text(WIDTH - RIGHT + 32, height + 4, line.name, 'start')]
    content = '\n'.join(parts)
    return (f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
            f'width="{WIDTH}" height="{HEIGHT}" role="img" font-family="sans-serif" '
            f'font-size="12" fill="#222">\n<title>{escape(title)}</title>\n'
            f'<rect width="100%" height="100%" fill="#fff"/>\n{content}\n</svg>')


def _scale(low: float, high: float, first: float, last: float) -> Callable[[float], float]:
    span = high - low or 1.0
    return lambda value: first + (value - low) / span * (last - first)


def _round_numbers(low: float, high: float) -> list[float]:
    """Four to eight multiples of 1, 2 or 5 times a power of ten, within the limits."""
    span = (high - low or 1.0) / 4
    power = 10.0 ** math.floor(math.log10(span))
    step = next(power * digit for digit in (5, 2, 1) if power * digit <= span)
    return [step * number for number in range(math.ceil(low / step - 1e-9),
                                              math.floor(high / step + 1e-9) + 1)]


def _text(x: float, y: float, text: str, anchor: str = 'middle', more: str = '') -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{more}>{escape(text)}</text>'
