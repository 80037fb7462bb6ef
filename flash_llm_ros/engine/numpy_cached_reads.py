"""How the NumPy core's cache is filled: what is missing is read at once, by the calling thread."""

from collections.abc import Iterator
import time

from flash_llm_ros.engine.numpy_flash import DISCARD, GroupFile, request_groups
from flash_llm_ros.engine.numpy_read_plan import plan_reads
from flash_llm_ros.engine.numpy_window import GroupCache
from flash_llm_ros.store.errors import FlashLlmError

COUNTERS = ('hits', 'misses', 'prefetched', 'prefetch_used', 'left_out', 'claim_ns', 'gap_groups')


class CachedReads:
    """Brings groups into the slots of a cache; sections go by the place of their first group."""

    def __init__(self, file: GroupFile, group_bytes: int) -> None:
        self.cache = GroupCache()
        self.costs = (0.5, request_groups(group_bytes))     # of a request, of its groups
        self.counters = dict.fromkeys(COUNTERS, 0)
        self._file = file

    def ensure(self, section: int, groups: list[int]) -> None:
        """Have all these groups in the cache, which are no more than its slots."""
        begin = time.monotonic_ns()
        cache, counters = self.cache, self.counters
        used, late = cache.fresh.intersection(groups), cache.fetched.intersection(groups)
        cache.fresh -= used
        cache.fetched -= late
        missing = cache.use(section, groups)
        counters['claim_ns'] += time.monotonic_ns() - begin
        counters['misses'] += len(missing) + len(late)
        counters['hits'] += len(groups) - len(missing) - len(late)
        counters['prefetch_used'] += len(used)
        errors = [error for run in self._planned(missing) if (error := self._load(run))]
        cache.rest(groups)
        if errors:
            raise errors[0]

    def prefetch(self, section: int, groups: list[int], needed: bool) -> None:
        """Read the absent ones, as far as idle slots go; failed reads are forgotten.

        `needed`: they are misses of the section's next use.
        """
        missing = self.cache.expect(section, groups)
        failed = [group for run in self._planned(missing) if self._load(run) for group in run]
        self.counters['prefetched'] += 0 if needed else len(missing)
        (self.cache.fetched if needed else self.cache.fresh).update(set(missing) - set(failed))

    def fetch(self, section: int, groups: list[int], deadline: float) -> list[bool]:
        """Read the absent ones in this order until the deadline; returns which are there then."""
        missing = self.cache.expect(section, groups)
        error: FlashLlmError | None = None
        for group in missing:
            if error or time.monotonic() >= deadline:
                self.cache.drop(group)
            elif not (error := self._load([group])):
                self.cache.fetched.add(group)
        if error:
            raise error
        return [group in self.cache.slots for group in groups]

    def _load(self, run: list[int]) -> FlashLlmError | None:
        """Read from the first to the last of these groups; what else lies there is discarded."""
        slots = [DISCARD] * (run[-1] + 1 - run[0])
        for group in run:
            slots[group - run[0]] = self.cache.slots[group]
        self.counters['gap_groups'] += len(slots) - len(run)
        try:
            self._file.read(run[0], slots)
        except FlashLlmError as error:
            for group in run:
                self.cache.drop(group)
            return error
        return None

    def _planned(self, groups: list[int]) -> Iterator[list[int]]:
        for begin, end in plan_reads(groups, *self.costs):
            yield groups[begin:end]
