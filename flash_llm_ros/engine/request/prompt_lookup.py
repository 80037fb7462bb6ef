"""Guesses of the next tokens, so that one pass over the flash may serve several of them."""

from collections.abc import Iterator

_LENGTHS = (3, 2)       # of the tokens that have to be the same, tried in this order
_LONGEST_REST = 16      # passes without a guess


class PromptLookup:
    """An answer often repeats its prompt or itself: it may go on as it did there.

    The guesses are run through the model in one pass with the token before them, and kept as far
    as the sampler chooses the same ones (prompt lookup decoding; "inference with reference", arXiv
    2304.04487). A wrong guess costs computing, which is what takes time where the flash does not:
    so it rests after one, twice as long after each further one.
    """

    def __init__(self, tokens: list[int], most: int) -> None:
        self._most = most
        self._length = min(2, most)
        self._wrong = self._rest = 0        # guesses in a row; passes
        self._tokens: list[int] = []
        self._next: dict[tuple[int, ...], int] = {}     # some tokens -> place of what followed
        for token in tokens if most else ():
            self.add(token)

    def add(self, token: int) -> None:
        """The text goes on with this token."""
        if self._most:
            for length in _LENGTHS:
                if len(self._tokens) >= length:
                    self._next[tuple(self._tokens[-length:])] = len(self._tokens)
            self._tokens.append(token)

    def prepare(self) -> Iterator[None]:
        """Nothing."""
        yield from ()

    def guess(self, room: int) -> list[int]:
        """What may come next, at most `room` tokens; empty where nothing like it was seen."""
        if self._rest:
            self._rest -= 1
            return []
        for length in _LENGTHS:
            place = self._next.get(tuple(self._tokens[-length:]))
            if place is not None:
                return self._tokens[place:place + max(0, min(self._length, room))]
        return []

    def learn(self, right: int, guessed: int) -> None:
        """Guess more tokens at a time where guesses are right, fewer where they are wrong."""
        if guessed:
            self._length = min(self._most, 2 * guessed if right == guessed else max(1, right))
            self._wrong = 0 if right else self._wrong + 1
            self._rest = min(2 ** self._wrong // 2, _LONGEST_REST)
