"""Type of an argument that is a time."""

from argparse import ArgumentTypeError
import math


def seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise ArgumentTypeError(f'{text!r} is no number of seconds, 0 or more.')
    return value
