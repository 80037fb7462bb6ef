"""Guesses of a draft model for one request."""

from collections.abc import Iterator

from flash_llm_ros.engine.model.draft_model import DraftModel
from flash_llm_ros.engine.request.draft_length import DraftLength
from flash_llm_ros.engine.request.sampling import Sampler


class ModelDrafts:
    """What the draft model, in the sampler's place, would choose.

    It draws with the random numbers that the sampler will draw with, so that where both models
    say nearly the same a sampled guess is right nearly as often as a greedy one. Since the
    sampler decides, the answer has the large model's distribution, and is the one that it would
    give without drafts.
    """

    def __init__(self, draft: DraftModel, tokens: list[int], sampler: Sampler) -> None:
        """`tokens`: the prompt; `sampler`: the request's, which is never changed."""
        self._draft, self._tokens, self._sampler = draft, list(tokens), sampler
        self._length = DraftLength(draft.costs, draft.most)
        self._wanted = 0

    def add(self, token: int) -> None:
        self._tokens.append(token)

    def prepare(self) -> Iterator[None]:
        """Decide how many tokens to draft, and run what the draft model has not seen, in chunks."""
        self._wanted = self._length.next()
        if self._wanted:
            yield from self._draft.follow(self, self._tokens)

    def guess(self, room: int) -> list[int]:
        most = min(self._wanted, room, self._draft.room(self._tokens))
        return self._draft.go_on(self, self._tokens, most, self._sampler.fork().pick)

    def learn(self, right: int, guessed: int) -> None:
        self._length.learn(right, guessed)
