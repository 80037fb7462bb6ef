"""Names for requests that do not bring one."""

import itertools


class RequestNumbers:
    """Counts from 1 up, over all interfaces of a node."""

    def __init__(self) -> None:
        self._counter = itertools.count(1)

    def next(self) -> str:
        """Return the next number."""
        return str(next(self._counter))
