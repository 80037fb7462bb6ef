"""Puts a finished store in its place, so that a lost battery leaves the old one or the new one.

Beside STORE there may be, while it is written, .STORE.partial-PID, and for a moment, on file
systems that cannot exchange two names, .STORE.old-PID. Their writer holds a lock on them, which
ends with its process: without one they were left behind. Who changes a store holds one on it.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
import ctypes
import errno
import fcntl
import os
from pathlib import Path
import shutil

_AT_FDCWD, _RENAME_EXCHANGE = -100, 2
# EPERM: what some container runtimes answer to calls that they do not know.
_NOT_TO_BE_HAD = (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EPERM)


class Publication:
    """A folder `path` beside `target`, to be filled and then published.

    As a context manager it removes what was not published, and what processes that were killed
    left of the same target. Nobody else writes to a store that it is to replace.
    """

    def __init__(self, target: Path, replace: bool) -> None:
        self.target = Path(os.path.realpath(target))
        self.path = self.target.with_name(f'.{self.target.name}.partial-{os.getpid()}')
        self._replace, self._locks = replace, ExitStack()

    def __enter__(self) -> 'Publication':
        """Raises OSError; FileExistsError where another process writes to the target."""
        restore(self.target)
        for left_over in _beside(self.target, 'partial', 'old'):
            with _claimed(left_over) as abandoned:
                if abandoned:
                    shutil.rmtree(left_over)
        with ExitStack() as locks:
            if self.target.exists():
                locks.enter_context(locked(self.target))
            try:
                self.path.mkdir()
            except OSError as error:
                raise OSError(error.errno, f'{error.strerror}; a store must be in a folder that '
                              'is there and can be written', str(self.target.parent)) from None
            locks.enter_context(locked(self.path))
            self._locks = locks.pop_all()
        return self

    def __exit__(self, *exception: object) -> None:
        shutil.rmtree(self.path, ignore_errors=True)
        self._locks.close()

    def publish(self) -> None:
        """Move the folder to its place; one that was there before is replaced and removed.

        Raises FileExistsError where there is one now that is not to be replaced.
        """
        for path in (*self.path.rglob('*'), self.path):
            sync(path)
        old = self.target.with_name(f'.{self.target.name}.old-{os.getpid()}')
        try:
            self.path.rename(self.target)       # to the place of nothing, or of an empty folder
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            if not self._replace:
                raise FileExistsError(f'{self.target} was written by another process meanwhile; '
                                      'give another name, or --replace.') from None
            if not _exchange(self.path, self.target):   # which leaves the old one in `path`
                self._rename_both(old)
        sync(self.target.parent)
        for replaced in (self.path, old):
            shutil.rmtree(replaced, ignore_errors=True)

    def _rename_both(self, old: Path) -> None:
        """Between the two there is no store of that name; `restore` brings the old one back.

        Not while this process runs: it has the old one locked.
        """
        self.target.rename(old)
        try:
            self.path.rename(self.target)
        except BaseException:
            old.rename(self.target)
            raise


def restore(target: Path) -> None:
    """Where a publication was interrupted between two renames, bring the old folder back."""
    target = Path(os.path.realpath(target))
    if target.exists():
        return
    for old in _beside(target, 'old'):
        with _claimed(old) as abandoned:
            if abandoned and not target.exists():
                old.rename(target)
                sync(target.parent)


def sync(path: Path) -> None:
    """Have a file or folder on the medium before it is named: robots lose power."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _beside(target: Path, *kinds: str) -> list[Path]:
    prefixes = tuple(f'.{target.name}.{kind}-' for kind in kinds)
    if not target.parent.is_dir():
        return []
    return sorted(path for path in target.parent.iterdir()
                  if path.name.startswith(prefixes) and path.is_dir())


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """No other process writes to `folder` meanwhile; the lock ends with this process.

    Raises FileExistsError where one does; OSError.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise FileExistsError(f'{folder} is being written by another process; wait for its '
                                  'end.') from None
        except OSError:
            pass                # a file system without locks: nobody can tell
        yield
    finally:
        os.close(descriptor)


@contextmanager
def _claimed(folder: Path) -> Iterator[bool]:
    """Whether no process works on `folder`; none begins to as long as this holds it."""
    with ExitStack() as lock:
        try:
            lock.enter_context(locked(folder))
        except (FileExistsError, FileNotFoundError):    # or it was brought back or removed just now
            yield False
        else:
            yield True


def _exchange(one: Path, other: Path) -> bool:
    """Let two folders swap names in one step; False where the system cannot. Raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, 'renameat2'):
        return False
    if libc.renameat2(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other),
                      _RENAME_EXCHANGE) == 0:
        return True
    error = ctypes.get_errno()
    if error in _NOT_TO_BE_HAD:
        return False
    raise OSError(error, os.strerror(error), str(one))
