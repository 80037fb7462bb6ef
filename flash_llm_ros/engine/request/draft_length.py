"""How many tokens a draft model proposes at a time."""

from flash_llm_ros.engine.model.draft_model import USUAL_SHARE, PassCosts

_FIRST_WEIGHT = 4.0                         # of the usual share of right guesses; in guesses
_FADING = 0.9                               # of what was learned, a pass
_PASSES_TO_RETRY = 16


class DraftLength:
    """The number that gives the most tokens a second, if guesses stay as right as they were."""

    def __init__(self, costs: PassCosts, most: int) -> None:
        self._costs, self._most = costs, most
        self._right, self._checked = USUAL_SHARE * _FIRST_WEIGHT, _FIRST_WEIGHT
        self._passes_without = 0

    def next(self) -> int:
        """How many to draft for the next pass."""
        best = self._best(self._right / self._checked)
        if best:
            self._passes_without = 0
        elif self._passes_without < _PASSES_TO_RETRY:
            self._passes_without += 1
        elif self._best(1.0):       # the text may have become easier
            self._passes_without = 0
            return 1
        return best

    def learn(self, right: int, drafted: int) -> None:
        """So many of the drafted tokens were right; those behind a wrong one were not checked."""
        self._right = _FADING * self._right + right
        self._checked = _FADING * self._checked + min(right + 1, drafted)

    def _best(self, share: float) -> int:
        return max(range(self._most + 1), key=lambda drafted: self._costs.speed(drafted, share))
