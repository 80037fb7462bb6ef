"""An argument that is a whole number between two others."""

from argparse import ArgumentTypeError
from collections.abc import Callable


def whole_number(least: int, most: int = 2**31 - 1) -> Callable[[str], int]:
    """Type of an argument; what is no such number is told in a sentence."""
    def convert(text: str) -> int:
        if not (text.isascii() and text.isdecimal()) or not least <= int(text) <= most:
            raise ArgumentTypeError(f'{text!r} is no whole number from {least} to {most}.')
        return int(text)
    return convert
