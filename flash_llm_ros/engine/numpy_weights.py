"""How the NumPy core meets weights: group after group, from pinned slots, the ring or the cache."""

from collections.abc import Iterator, Sequence

import numpy as np

from flash_llm_ros.engine.core_arguments import check
from flash_llm_ros.engine.numpy_cached_reads import CachedReads
from flash_llm_ros.engine.numpy_flash import GroupFile, Slab
from flash_llm_ros.engine.numpy_section import Section

DECODED_GROUPS = 16  # groups decoded to float32 at a time


class GroupWeights:
    """Gives a section's weights as float32; what is neither pinned nor cached is read first."""

    def __init__(self, slab: Slab, file: GroupFile, cached: CachedReads, dim: int) -> None:
        self.ring: tuple[int, int, int] | None = None  # first slot, chunk groups, chunks
        self._slab, self._file, self._cached, self._dim = slab, file, cached, dim
        self._counters = cached.counters

    def dense(self, section: Section) -> Iterator[tuple[int, np.ndarray]]:
        """All groups in order: first bundle, weights float32 [groups, bundles, rows, dim]."""
        self._counters['hits'] += section.pinned
        self._counters['misses'] += section.groups - section.pinned
        for local in range(0, section.pinned, DECODED_GROUPS):
            slot = section.pin_slot + local
            count = min(DECODED_GROUPS, section.pinned - local)
            yield from self._decoded(section, local, range(slot, slot + count))
        if section.pinned == section.groups:
            return
        check(self.ring is not None, 'set_ring', None, 'called before unpinned groups are used')
        first_slot, chunk_groups, chunks = self.ring
        for number, local in enumerate(range(section.pinned, section.groups, chunk_groups)):
            slot = first_slot + number % chunks * chunk_groups
            slots = range(slot, slot + min(chunk_groups, section.groups - local))
            self._file.read(section.first_group + local, list(slots))
            for start in range(0, len(slots), DECODED_GROUPS):
                yield from self._decoded(section, local + start,
                                         slots[start:start + DECODED_GROUPS])

    def sparse(self, section: Section, bundles: np.ndarray
               ) -> Iterator[tuple[int, np.ndarray]]:
        """The groups of the given bundles in order: first bundle, weights [bundles, rows, dim]."""
        groups = iter(np.unique(bundles // section.bundles_per_group).tolist())
        pending = next(groups, None)
        while pending is not None:
            batch, absent = [], []
            while pending is not None:
                if pending >= section.pinned:
                    if len(absent) == self._cached.cache.size:
                        break
                    absent.append(section.first_group + pending)
                batch.append(pending)
                pending = next(groups, None)
            check(batch, 'set_cache', None, 'called before unpinned groups are used')
            self._cached.ensure(section.first_group, absent)
            self._counters['hits'] += len(batch) - len(absent)
            for local in batch:
                slot = (section.pin_slot + local if local < section.pinned
                        else self._cached.cache.slots[section.first_group + local])
                for start, weights in self._decoded(section, local, [slot]):
                    yield start, weights[0]

    def _decoded(self, section: Section, local: int, slots: Sequence[int]
                 ) -> Iterator[tuple[int, np.ndarray]]:
        """Decode neighbouring groups; a shorter last group comes by itself."""
        full = min(len(slots), section.bundles // section.bundles_per_group - local)
        for begin, end in ((0, full), (full, len(slots))):
            if begin < end:
                start = (local + begin) * section.bundles_per_group
                bundles = min(section.bundles_per_group, section.bundles - start)
                codec = section.codec
                used = bundles * section.rows * codec.row_bytes
                data = self._slab.bytes[list(slots[begin:end]), :used]
                weights = codec.decode(data.reshape(-1, codec.row_bytes))
                yield start, weights.reshape(end - begin, bundles, section.rows, self._dim)
