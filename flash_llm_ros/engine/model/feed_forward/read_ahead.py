"""Whether a layer's bundles are read while the one before is computed: as long as it is faster."""

from collections.abc import Callable
from statistics import median
import time

# An even drift, such as of a window that fills, favours neither: the middles are the same.
_TRIAL = (False, False, True, True, True, True, False, False)
_HELD = 120         # tokens with what a trial has found
_LEAST_GAIN = 0.03


class ReadAhead:
    """Times tokens' layers with and without, some of every 128, and goes on with the faster.

    It pays where a layer takes longer to compute than to predict and the device would stand still
    meanwhile; measured are not these, but what they come to on this machine with this load. The
    text is the same either way.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._chosen = False
        self._token = 0                 # of a trial and what is held after it
        self._seconds: dict[bool, list[float]] = {False: [], True: []}
        self._on, self._begun = False, 0.0      # of the token that is computed

    def begin(self) -> bool:
        """A token's first layer comes next; True: read ahead for it."""
        self._on = _TRIAL[self._token] if self._token < len(_TRIAL) else self._chosen
        self._begun = self._clock()
        return self._on

    def end(self) -> None:
        """The token's last layer has been computed."""
        if self._token < len(_TRIAL):
            self._seconds[self._on].append(self._clock() - self._begun)
        self._token += 1
        if self._token == len(_TRIAL):
            off, on = median(self._seconds[False]), median(self._seconds[True])
            self._chosen = on < (1 - _LEAST_GAIN) * off
            self._seconds = {False: [], True: []}
        self._token %= len(_TRIAL) + _HELD
