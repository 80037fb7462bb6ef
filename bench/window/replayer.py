"""What a cache of groups would hit and miss over a trace: with a policy, and at best (Belady)."""

from collections.abc import Sequence
from dataclasses import dataclass
import heapq
from itertools import chain
import math

from bench.window.policies import make_policy

# Of each token, of each of its turns (a layer's): the groups used together, each once.
Trace = Sequence[Sequence[Sequence[int]]]


@dataclass(frozen=True)
class Counts:
    """Uses of groups that were in the cache, and uses of others."""

    hits: int
    misses: int

    @property
    def hit_rate(self) -> float:
        return self.hits / max(self.hits + self.misses, 1)


def replay(policy_name: str, slots: int, trace: Trace) -> Counts:
    """A cache that begins empty, its victims chosen by a policy of bench.window.policies.

    ValueError where the policy is unknown or a turn uses more groups than there are slots.
    """
    policy = make_policy(policy_name, slots)
    present: set[int] = set()
    uses = misses = 0
    for number, token in enumerate(trace):
        if number:
            policy.token()
        for groups in token:
            if len(groups) > slots:
                raise ValueError(f'slots is {slots}; it must be at least {len(groups)}, as many '
                                 'as one turn uses')
            missing = [group for group in groups if group not in present]
            for group in groups:
                if group in present:
                    policy.take(group)
            for group in missing:
                if len(present) == slots:
                    present.remove(policy.victim())
                present.add(group)
            for group in groups:
                policy.add(group)
            uses, misses = uses + len(groups), misses + len(missing)
    return Counts(uses - misses, misses)


def at_best(slots: int, trace: Trace) -> Counts:
    """Belady's optimum: of the groups in the cache, the one whose next use is last yields."""
    uses = [int(group) for groups in chain.from_iterable(trace) for group in groups]
    next_use, upcoming = [math.inf] * len(uses), {}
    for place in reversed(range(len(uses))):
        next_use[place] = upcoming.get(uses[place], math.inf)
        upcoming[uses[place]] = place
    due: dict[int, float] = {}                  # next use of the groups in the cache
    latest: list[tuple[float, int]] = []        # heap of (-next use, group), some out of date
    hits = 0
    for group, then in zip(uses, next_use, strict=True):
        hits += group in due
        if group not in due and len(due) == slots:
            while due.get(latest[0][1]) != -latest[0][0]:
                heapq.heappop(latest)
            del due[heapq.heappop(latest)[1]]
        due[group] = then
        heapq.heappush(latest, (-then, group))
    return Counts(hits, len(uses) - hits)
