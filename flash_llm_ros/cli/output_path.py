"""Where a command writes: told before its work, not after, where that is not possible."""

from argparse import ArgumentTypeError
import os
from pathlib import Path


def output_file(text: str) -> Path:
    """Type of an argument that names a file to write; one that is there is replaced."""
    path = Path(text)
    if path.is_dir():
        raise ArgumentTypeError(f'{path} is a folder; it must be a file.')
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise ArgumentTypeError(
            f'{path} cannot be written; it must be a file in a folder that can be.')
    return path


def output_folder(text: str) -> Path:
    """Type of an argument that names a new folder."""
    path = Path(text)
    if path.exists():
        raise ArgumentTypeError(f'{path} is there already; it must be a new folder.')
    if not os.access(path.parent, os.W_OK):
        raise ArgumentTypeError(
            f'{path} cannot be written; it must be in a folder that can be.')
    return path
