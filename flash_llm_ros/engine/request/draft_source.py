"""Where guesses of the next tokens come from; one pass over the flash checks several of them."""

from collections.abc import Iterator, Sequence
from typing import Protocol


class DraftSource(Protocol):
    """Goes along with the text of one request.

    Its guesses are run through the model in one pass with the token before them, and kept as far
    as the sampler chooses the same ones: the answer is the model's own.
    """

    def add(self, token: int) -> None:
        """The text goes on with this token."""

    def prepare(self) -> Iterator[None]:
        """Work off what `guess` would otherwise do at once; others may act between its steps."""

    def guess(self, room: int) -> list[int]:
        """What may come next, at most `room` tokens; empty where nothing is to be gained."""

    def learn(self, right: int, guessed: int) -> None:
        """So many of the last guess were right."""


class FirstGuess:
    """Of several sources, in this order, the first that has a guess."""

    def __init__(self, sources: Sequence[DraftSource]) -> None:
        self._sources = sources
        self._guessed: DraftSource | None = None

    def add(self, token: int) -> None:
        for source in self._sources:
            source.add(token)

    def prepare(self) -> Iterator[None]:
        for source in self._sources:
            yield from source.prepare()

    def guess(self, room: int) -> list[int]:
        for source in self._sources:
            if guess := source.guess(room):
                self._guessed = source
                return guess
        return []

    def learn(self, right: int, guessed: int) -> None:
        if guessed and self._guessed is not None:
            self._guessed.learn(right, guessed)
