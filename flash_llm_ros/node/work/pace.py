"""How long the engine has to rest, so that it works only a share of the time."""

from collections.abc import Callable
import time


class Pace:
    """Adds up work and pays for it with rest; idle time is rest, too.

    The duty cycle, in (0, 1], is given anew with every question, so that it may change at any
    time; what is owed is kept as work, for which the duty cycle of the moment is asked.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._work = 0.0            # s, not paid for
        self._since = clock()       # when the work or the rest began
        self._working = False

    def work(self, duty_cycle: float) -> None:
        """The engine begins to work."""
        self._settle(duty_cycle)
        self._working = True

    def rest(self, duty_cycle: float) -> None:
        """The engine stops working."""
        self._settle(duty_cycle)
        self._working = False

    @property
    def unpaid(self) -> float:
        """Seconds of work that have not been paid for."""
        return self._work

    def owed(self, duty_cycle: float, least: float = 0.0) -> float:
        """Seconds of rest until no more than `least` seconds of work are unpaid."""
        self._settle(duty_cycle)
        return max(0.0, self._work - least) * (1 - duty_cycle) / duty_cycle

    def _settle(self, duty_cycle: float) -> None:
        now = self._clock()
        passed, self._since = now - self._since, now
        if self._working:
            self._work += passed
        elif duty_cycle < 1:
            self._work = max(0.0, self._work - passed * duty_cycle / (1 - duty_cycle))
        else:
            self._work = 0.0
