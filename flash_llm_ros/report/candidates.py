"""Which model in which budget, and at most how fast: by arithmetic, before a store is made."""

from dataclasses import dataclass

from flash_llm_ros.engine.config import EngineConfig
from flash_llm_ros.engine.model.attention_part import longer_contexts

MB = 10**6
CONTEXT = EngineConfig.context_length
# Share of what is free now: the rest is for what the robot starts later.
_SHARE_OF_FREE = 0.5
_LEAST_WINDOW = 8 * MB
READING = 4.0       # tokens/s, about as fast as a person reads


@dataclass(frozen=True)
class Candidate:
    """A model as `flash_llm convert` makes it: measured by `flash_llm report STORE`.

    Bytes: on flash; of its weights that every token needs; of all else, with a KV cache for
    CONTEXT tokens; of keys and values of a token.
    """

    name: str
    convert: str
    flash_bytes: int
    token_bytes: int
    fixed_bytes: int
    kv_bytes: int
    max_context: int                # tokens

    @property
    def context_text(self) -> str:
        """What a longer context would take."""
        return longer_contexts(CONTEXT, self.max_context, lambda tokens: tokens * self.kv_bytes)


CANDIDATES = (
    Candidate('SmolLM2-135M-Instruct', '--neurons int8', 135 * MB, 131 * MB, 40 * MB,
              12_060, 8192),
    Candidate('Qwen2.5-Coder-1.5B-Instruct', '--neurons int4 --most-loss inf', 1030 * MB, 886 * MB,
              59 * MB, 14_896, 32768),
)


@dataclass(frozen=True)
class Prospect:
    """A candidate in a budget: bytes, and tokens a second that flash and memory allow at most."""

    candidate: Candidate
    budget: int
    read_bytes: int
    most_rate: float


def prospects(free: int, flash_rate: float, memory_rate: float) -> list[Prospect]:
    """Of each candidate that fits into half of what is free; rates in bytes a second.

    What is not in the window is read, while the rest is computed: the slower of both decides.
    """
    found = []
    for candidate in CANDIDATES:
        all_of_it = candidate.fixed_bytes + candidate.token_bytes
        budget = min(int(free * _SHARE_OF_FREE), all_of_it + _LEAST_WINDOW) // MB * MB
        if budget < candidate.fixed_bytes + _LEAST_WINDOW:
            continue
        read = max(all_of_it - budget, 0)
        seconds = max(read / flash_rate, candidate.token_bytes / memory_rate)
        found.append(Prospect(candidate, budget, read, 1 / seconds))
    return found


def recommended(found: list[Prospect]) -> Prospect | None:
    """The largest model that is as fast as one reads, else the fastest; None where none fits."""
    fluent = [each for each in found if each.most_rate >= READING]
    if fluent:
        return max(fluent, key=lambda each: each.candidate.flash_bytes)
    return max(found, key=lambda each: each.most_rate, default=None)
