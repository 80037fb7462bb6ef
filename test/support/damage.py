"""Files that the medium has damaged."""

from pathlib import Path
from typing import BinaryIO


def flip_bit(place: Path | BinaryIO, at: int, bit: int = 0) -> None:
    """Of the byte at this offset of a file, which may be open and have no name."""
    if isinstance(place, Path):
        with place.open('r+b') as file:
            return flip_bit(file, at, bit)
    place.seek(at)
    byte = place.read(1)[0]
    place.seek(at)
    place.write(bytes([byte ^ 1 << bit]))
    place.flush()
