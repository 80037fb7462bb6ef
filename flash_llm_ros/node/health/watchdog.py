"""Sees when work stands still, and ends a process that cannot end by itself. Knows no ROS."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
import faulthandler
import os
import threading
import time
from typing import Protocol

from flash_llm_ros.store.errors import ErrorCode, FlashLlmError

EXIT_STALLED = 70       # EX_SOFTWARE of sysexits.h: `respawn` starts the node again
PERIOD = 0.5            # s
# A native call that never gives Python back lets no line of this file run. faulthandler's thread
# needs none; times stall_error, since it cannot tell that from a process that was stopped.
_PATIENCE_WITHOUT_PYTHON = 5
_LONGEST_LOG = 2.0      # s: who reads the log may have stopped reading
_TOLD_FOR = 2.5         # s that /diagnostics and ~/status tell of it before the process ends


class Logger(Protocol):
    """As of rclpy."""

    def error(self, sentence: str) -> object: ...

    def fatal(self, sentence: str) -> object: ...


class Work(Protocol):
    """What is watched: requests that are served, a store that is opened."""

    @property
    def progress(self) -> tuple[int, ...] | None:
        """Changes with everything that is done; None while there is nothing to do."""


class Watchdog:
    """Progress is a token, a chunk of a prompt, a group taken from the window or from flash.

    While a store is opened it is a piece of a file.
    """

    def __init__(
        self, current_work: Callable[[], Work | None], stall_error: Callable[[], float],
        logger: Logger, clock: Callable[[], float] = time.monotonic,
        end: Callable[[int], None] = os._exit,
    ) -> None:
        """`stall_error`: seconds without progress that are one, as they are now."""
        self._current_work, self._stall_error = current_work, stall_error
        self._logger, self._clock, self._end = logger, clock, end
        self._mark: tuple[int, ...] | None = None
        self._since = clock()
        self._ending: list[float] = []      # when each transition that waits for an end began
        self._told = False

    def start(self) -> None:
        """Look from now on, in a thread of its own."""
        threading.Thread(target=self._run, name='watchdog', daemon=True).start()

    @contextmanager
    def ending(self) -> Iterator[None]:
        """What is done meanwhile waits for work: where that stalls, the process ends."""
        since = self._clock()
        self._ending.append(since)
        try:
            yield
        finally:
            self._ending.remove(since)

    def complaint(self) -> FlashLlmError | None:
        """What is to be told while work stands still."""
        stalled = 0.0 if self._mark is None else self._clock() - self._since
        if stalled < self._stall_error():
            return None
        return FlashLlmError(ErrorCode.INTERNAL, (
            f'The engine has made no progress for {stalled:.0f} s (`health.stall_error`). '
            'Deactivate or stop the node: what does not end then, ends with its process, as does '
            'what stands still while the node is configured.'))

    def look(self) -> None:
        """Note progress; about twice a second."""
        work = self._current_work()
        mark = None if work is None else work.progress
        now = self._clock()
        if mark is None or mark != self._mark:
            self._mark, self._since = mark, now
        complaint = self.complaint()
        if complaint is not None and not self._told:
            self._logger.error(str(complaint))
        self._told = complaint is not None
        if self._ending:
            waiting = now - (min(self._ending) if mark is None else self._since)
            if waiting >= self._stall_error() + _TOLD_FOR:
                self._give_up(waiting)

    def _give_up(self, waiting: float) -> None:
        sentence = (f'A transition waits for work that has made no progress for {waiting:.0f} s '
                    f'(`health.stall_error`): the process ends with exit code {EXIT_STALLED}.')
        log = threading.Thread(target=self._logger.fatal, args=(sentence,), daemon=True)
        log.start()
        log.join(_LONGEST_LOG)
        self._end(EXIT_STALLED)

    def _run(self) -> None:
        while True:
            faulthandler.dump_traceback_later(
                _PATIENCE_WITHOUT_PYTHON * self._stall_error(), exit=True)
            self.look()
            time.sleep(PERIOD)
