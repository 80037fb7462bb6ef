"""Files that are written: what fails names the file, which Python's own errors do not."""

import os
from pathlib import Path
from typing import Any


class OutputFile:
    """A new file without a buffer of its own; every call may raise OSError with the path."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = path.open('wb', buffering=0)

    def write(self, data: Any) -> None:
        """All of a contiguous buffer."""
        rest = memoryview(data)
        if rest.nbytes == 0:
            return
        rest = rest.cast('B')
        try:
            while rest:
                rest = rest[self._file.write(rest):]
        except OSError as error:
            raise self._named(error) from None

    def close(self, sync: bool = True) -> None:
        """`sync`: once it is on the medium."""
        try:
            with self._file:
                if sync:
                    os.fsync(self._file.fileno())
        except OSError as error:
            raise self._named(error) from None

    def _named(self, error: OSError) -> OSError:
        return OSError(error.errno, error.strerror, str(self._path))


def write_file(path: Path, content: bytes | str) -> None:
    """A whole file, text as UTF-8; raises OSError with the path."""
    file = OutputFile(path)
    try:
        file.write(content.encode() if isinstance(content, str) else content)
    finally:
        file.close(sync=False)
