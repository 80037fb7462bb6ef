"""How the time of one token is shared out over its layers (anytime tokens)."""

from collections.abc import Callable
import time


def reads_end(now: float, end: float, computing: float, layers: int) -> float:
    """When the reads of the present layer have to stop, which is one of ``layers`` to come.

    Of the time until ``end`` computing takes ``computing`` seconds; what is left belongs to the
    layers in equal parts. A layer that needs less leaves more to those behind it.
    """
    return now + max(0.0, end - now - computing) / layers


class TokenClock:
    """Times one token after another; ``seconds`` a token may take, 0: as long as it takes."""

    def __init__(self, seconds: float, layers: int,
                 clock: Callable[[], float] = time.monotonic) -> None:
        self.seconds, self.missed = seconds, 0      # tokens that took longer all the same
        self._layers, self._clock = layers, clock
        self._begin = self._waited = self._computing = 0.0

    def begin(self) -> None:
        """A token's first layer comes next."""
        self._begin, self._waited = self._clock(), 0.0

    def layer(self, layer: int, read: Callable[[float], int]) -> int:
        """Call ``read`` with the moment (of the monotonic clock) at which it has to stop."""
        now = self._clock()
        computed = now - self._begin - self._waited
        left = max(0.0, self._computing - computed)
        found = read(reads_end(now, self._begin + self.seconds, left, self._layers - layer))
        self._waited += self._clock() - now
        return found

    def end(self) -> None:
        """The token is done: learn how long computing takes, however long reads took."""
        took = self._clock() - self._begin
        self.missed += took > self.seconds
        computing = took - self._waited
        self._computing += (computing - self._computing) * (0.25 if self._computing else 1)
