"""A folder for what was said: nobody but the user of this process can have put anything there."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
import errno
import os
from pathlib import Path
import stat
from typing import BinaryIO

_OTHERS = stat.S_IRWXG | stat.S_IRWXO
_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


class UnsafeFileError(OSError):
    """Others could have written to a folder or a file, or read it; `strerror` says which."""

    def __init__(self, problem: str) -> None:
        super().__init__(errno.EPERM, problem)


@contextmanager
def private_folder(path: Path, make: bool = True) -> Iterator[int]:
    """A descriptor of the folder, made with mode 0700 where it is missing and `make` says so.

    What is opened below the descriptor is in the folder that was checked, whatever happens to its
    name. Raises OSError: UnsafeFileError where others may write to the folder.
    """
    if make:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        facts = os.fstat(folder)
        if facts.st_uid != os.geteuid():
            raise UnsafeFileError(f'the folder belongs to user {facts.st_uid} and not to user '
                                  f'{os.geteuid()}, who runs this; name one of your own')
        if facts.st_mode & _OTHERS_WRITE:
            raise UnsafeFileError(
                f'other users may write to the folder (its mode is {_mode(facts)}); '
                '`chmod go-w` it, or name another one')
        yield folder
    finally:
        os.close(folder)


def open_private(folder: int, name: str) -> BinaryIO:
    """A file of ours that only we can read and write; no link is followed, no pipe waited for.

    Raises OSError: UnsafeFileError for any other file.
    """
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        file = os.fdopen(os.open(name, flags, dir_fd=folder), 'rb')
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise UnsafeFileError('it is a symbolic link') from None
        raise
    try:
        facts = os.fstat(file.fileno())
        if not stat.S_ISREG(facts.st_mode):
            raise UnsafeFileError('it is no file')
        if facts.st_uid != os.geteuid() or facts.st_mode & _OTHERS:
            raise UnsafeFileError(f'it belongs to user {facts.st_uid} with mode {_mode(facts)}, '
                                  f'and must be of user {os.geteuid()} with mode 0600')
        return file
    except BaseException:
        file.close()
        raise


def create_private(folder: int, name: str) -> BinaryIO:
    """A new file of mode 0600; what had the name, a link, too, is removed before. OSError."""
    with suppress(FileNotFoundError):
        os.unlink(name, dir_fd=folder)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    return os.fdopen(os.open(name, flags, 0o600, dir_fd=folder), 'wb')


def _mode(facts: os.stat_result) -> str:
    return f'{stat.S_IMODE(facts.st_mode):04o}'
