"""The neuron core in NumPy: reads synchronously, computes plainly; the oracle and the fallback."""

from collections.abc import Sequence
import math
import os

import numpy as np

from flash_llm_ros.engine import numpy_ffn as ffn
from flash_llm_ros.engine.config import READERS
from flash_llm_ros.engine.core_arguments import check, check_array, check_pair
from flash_llm_ros.engine.numpy_cached_reads import CachedReads
from flash_llm_ros.engine.numpy_flash import MAX_CHUNK_BYTES, GroupFile, Slab, request_groups
from flash_llm_ros.engine.numpy_policies import DEFAULT_POLICY, make_policy
from flash_llm_ros.engine.numpy_section import Section
from flash_llm_ros.engine.numpy_weights import DECODED_GROUPS, GroupWeights
from flash_llm_ros.engine.numpy_window import GroupCache
from flash_llm_ros.store.codec import row_codec
from flash_llm_ros.store.errors import FlashLlmError
from flash_llm_ros.store.geometry import CHECKSUM_BYTES
from flash_llm_ros.store.rounding import rounded


class NeuronCore:
    """Same interface and results (up to rounding) as ``flash_llm_ros._native.NeuronCore``.

    ``path`` holds ``groups`` groups of ``group_bytes``; rows have ``dim`` values; ``slots``
    groups fit in the slab. ``threads`` compute in the native core, the
    caller's included; results do not depend on it. Raises ValueError for a wrong argument,
    ReadFailedError and ChecksumError (after one retry) for the file, RuntimeError once closed.
    Arrays of a failed compute call hold unspecified values; the core itself stays usable.
    """

    def __init__(self, path: str, group_bytes: int, groups: int, dim: int, slots: int, *,
                 threads: int = 1, reader: str = 'auto', reads_in_flight: int = 32,
                 direct_io: bool = True, lock_memory: bool = True) -> None:
        for name, value in (('group_bytes', group_bytes), ('groups', groups), ('slots', slots),
                            ('threads', threads), ('reads_in_flight', reads_in_flight)):
            check(value >= 1, name, value, 'at least 1')
        check(reader in READERS, 'reader', reader, f'one of {", ".join(READERS)}')
        check(group_bytes % 512 == 0, 'group_bytes', group_bytes, 'a multiple of 512')
        check(dim >= 1, 'dim', dim, 'a positive integer')
        self._dim = dim
        self._group_bytes = group_bytes
        self._groups = groups
        self._sections: list[Section] = []
        self._slab = Slab(slots, group_bytes, lock_memory)
        self._locked = self._slab.locked
        self._closed = False
        try:
            self._file = GroupFile(os.fspath(path), groups, self._slab, direct_io,
                                   self._section_of)
        except BaseException:
            self._slab.close()
            raise
        self._cached = CachedReads(self._file, group_bytes)
        self._weights = GroupWeights(self._slab, self._file, self._cached, dim)
        self._counters = self._cached.counters

    @property
    def direct(self) -> bool:
        """Whether reads bypass the page cache."""
        return self._file.direct

    @property
    def locked(self) -> bool:
        """Whether the slab is locked in DRAM."""
        return self._locked

    @property
    def reader(self) -> str:
        """How the file is read: 'synchronous' here, whatever was asked for; see EngineConfig."""
        return 'synchronous'

    @property
    def kernels(self) -> str:
        """Which arithmetic runs: 'numpy' here, an instruction set in the native core."""
        return 'numpy'

    @property
    def scratch_bytes(self) -> int:
        """Bytes beside the slab: some groups as float32 and in the steps towards it."""
        rows = max((self._group_bytes // section.codec.row_bytes for section in self._sections),
                   default=0)
        return 3 * DECODED_GROUPS * max(rows, 1) * (self._dim + 32) * 4 + self._group_bytes

    def add_section(self, first_group: int, bundles: int, bundles_per_group: int,
                    rows: int, codec: str) -> int:
        """Register consecutive groups of bundles of ``rows`` rows in a codec; returns an id."""
        self._check_open()
        check(bundles >= 1, 'bundles', bundles, 'at least 1')
        check(bundles_per_group >= 1, 'bundles_per_group', bundles_per_group, 'at least 1')
        check(1 <= rows <= 3, 'rows', rows, '1, 2 or 3')
        stored = row_codec(codec, self._dim)
        used = bundles_per_group * rows * stored.row_bytes + CHECKSUM_BYTES
        check(used <= self._group_bytes, 'bundles_per_group', bundles_per_group,
              f'so few that {used} bytes fit in a group of {self._group_bytes}')
        section = Section(first_group, bundles, bundles_per_group, rows, stored)
        check(0 <= first_group <= self._groups - section.groups, 'first_group', first_group,
              f'such that {section.groups} groups lie within the file of {self._groups}')
        self._sections.append(section)
        return len(self._sections) - 1

    def pin(self, section: int, groups: int) -> None:
        """Load the section's first ``groups`` groups into slots for good; once per section."""
        self._check_open()
        wanted = self._section(section)
        check(wanted.pin_slot is None, 'section', section, 'one that was not pinned before')
        check(0 <= groups <= wanted.groups, 'groups', groups, f'between 0 and {wanted.groups}')
        slot = self._slab.take(groups, f'pinning {groups} groups')
        try:
            self._read_run(wanted.first_group, list(range(slot, slot + groups)))
        except FlashLlmError:
            self._slab.give_back(groups)
            raise
        wanted.pinned, wanted.pin_slot = groups, slot

    def set_ring(self, chunk_groups: int, chunks: int) -> None:
        """Reserve ``chunks`` runs of ``chunk_groups`` slots for streaming; once."""
        self._check_open()
        most = MAX_CHUNK_BYTES // self._group_bytes
        check(1 <= chunk_groups <= most, 'chunk_groups', chunk_groups, f'between 1 and {most}')
        check(chunks >= 1, 'chunks', chunks, 'at least 1')
        check(self._weights.ring is None, 'set_ring', 'a second call', 'called once')
        slot = self._slab.take(chunk_groups * chunks, 'the stream ring')
        self._weights.ring = (slot, chunk_groups, chunks)

    def set_cache(self, slots: int, policy: str = DEFAULT_POLICY) -> None:
        """Reserve ``slots`` slots for groups read one by one; ``policy`` says which yield; once."""
        self._check_open()
        check(slots >= 1, 'slots', slots, 'at least 1')
        check(self._cached.cache.size == 0, 'set_cache', 'a second call', 'called once')
        chosen = make_policy(policy, slots)
        first = self._slab.take(slots, 'the cache')
        self._cached.cache = GroupCache(list(range(first, first + slots)), chosen)

    def set_stream_order(self, sections: Sequence[int]) -> None:
        """Accepted for the native core's sake, which reads ahead in this order."""
        self._check_open()
        check(not sections or self._weights.ring is not None, 'sections', list(sections),
              'empty as long as set_ring was not called')
        for section in sections:
            self._section(section)

    def set_read_costs(self, request_seconds: float, byte_seconds: float,
                       largest_bytes: int) -> None:
        """Plan scattered reads for a device: time of a request, of each byte, longest request.

        A gap between missing groups is read where that costs less than another request. Without
        this call only neighbours are read together.
        """
        self._check_open()
        for name, value in (('request_seconds', request_seconds), ('byte_seconds', byte_seconds)):
            check(math.isfinite(value) and value > 0, name, value, 'above 0 and finite')
        check(largest_bytes >= 1, 'largest_bytes', largest_bytes, 'at least 1')
        largest = min(max(1, largest_bytes // self._group_bytes),
                      request_groups(self._group_bytes))
        self._cached.costs = (request_seconds / (byte_seconds * self._group_bytes), largest)

    def limit_threads(self, most: int) -> None:
        """Accepted for the native core's sake, which computes with at most so many from now on."""
        self._check_open()
        check(1 <= most <= 256, 'most', most, 'between 1 and 256')

    def rows_dot(self, section: int, x: np.ndarray, out: np.ndarray) -> None:
        """out [S, bundles] = x [S, dim] @ W.T for a section of single rows."""
        found = self._compute_section(section, 1)
        check_pair('x', x, self._dim, 'out', out, found.bundles)
        x = rounded(x, found.codec.name)
        for start, weights in self._weights.dense(found):
            ffn.scatter(out, start, np.matmul(x, weights[:, :, 0].transpose(0, 2, 1)))

    def gate_up(self, section: int, x: np.ndarray, h: np.ndarray, activation: str) -> None:
        """h [S, bundles] = act(x @ gate.T) * (x @ up.T); ``activation``: 'silu' or 'relu'."""
        found = self._compute_section(section, 2)
        act = ffn.activation_of(activation)
        check_pair('x', x, self._dim, 'h', h, found.bundles)
        x = rounded(x, found.codec.name)
        for start, weights in self._weights.dense(found):
            ffn.scatter(h, start, ffn.gated(x, weights, act))

    def add_rows(self, section: int, h: np.ndarray, out: np.ndarray) -> None:
        """out [S, dim] += h [S, bundles] @ W, summed in bundle order."""
        found = self._compute_section(section, 1)
        check_pair('h', h, found.bundles, 'out', out, self._dim)
        for start, weights in self._weights.dense(found):
            rows = weights.reshape(-1, self._dim)
            for index, row in enumerate(rows):
                out += h[:, start + index, None] * row

    def bundled(self, section: int, x: np.ndarray, out: np.ndarray, activation: str,
                bias: np.ndarray | None = None, threshold: float = 0.0) -> None:
        """out [S, dim] += h @ down, summed in bundle order, h being the activations.

        Bundles of three rows: h = act(x @ gate.T) * (x @ up.T). Of two rows:
        h = act(x @ up.T + bias), ``bias`` float32 [bundles] or None for 0. ``threshold``: relu is
        0 up to there.
        """
        found, act = self._bundle_section(section, activation, bias, threshold)
        check_pair('x', x, self._dim, 'out', out, self._dim)
        x = rounded(x, found.codec.name)
        for start, weights in self._weights.dense(found):
            h = ffn.bundle_activations(x, weights, act, ffn.bias_part(bias, start, weights))
            for values, group in zip(h, weights, strict=True):
                for index, bundle in enumerate(group):
                    out += values[:, index, None] * bundle[-1]

    def add_rows_sparse(self, section: int, h: np.ndarray, active: np.ndarray,
                        out: np.ndarray, stream: bool = False) -> None:
        """out [dim] += the sum of h[i] * row i over active bundles, in bundle order.

        ``stream``: all groups are read in a stream; otherwise those with an active bundle.
        """
        found = self._compute_section(section, 1)
        check_array('h', h, np.float32, (found.bundles,))
        check_array('active', active, np.uint8, (found.bundles,))
        check_array('out', out, np.float32, (self._dim,), writable=True)
        groups = (self._weights.dense(found) if stream
                  else self._weights.sparse(found, np.flatnonzero(active)))
        for start, weights in groups:
            rows = weights.reshape(-1, self._dim)
            for index in np.flatnonzero(active[start:start + len(rows)]):
                out += h[start + index] * rows[index]

    def bundled_sparse(self, section: int, x: np.ndarray, active: np.ndarray, out: np.ndarray,
                       activation: str, h_out: np.ndarray | None = None,
                       bias: np.ndarray | None = None, threshold: float = 0.0) -> None:
        """As ``bundled`` for one token, x [dim], over active bundles only.

        ``h_out`` [bundles], if given, gets the activations, 0 where a bundle is not active.
        """
        found, act = self._bundle_section(section, activation, bias, threshold)
        check_array('x', x, np.float32, (self._dim,))
        check_array('active', active, np.uint8, (found.bundles,))
        check_array('out', out, np.float32, (self._dim,), writable=True)
        if h_out is not None:
            check_array('h_out', h_out, np.float32, (found.bundles,), writable=True)
            h_out[:] = 0
        x = rounded(x[None], found.codec.name)
        for start, group in self._weights.sparse(found, np.flatnonzero(active)):
            part = ffn.bias_part(bias, start, group[None])
            values = ffn.bundle_activations(x, group[None], act, part)[0, 0]
            for index in np.flatnonzero(active[start:start + len(group)]):
                out += values[index] * group[index, -1]
                if h_out is not None:
                    h_out[start + index] = values[index]

    def prefetch(self, section: int, wanted: np.ndarray, needed: bool = False) -> None:
        """Read groups that hold wanted bundles into the cache, as many as it has slots.

        ``needed``: the section's next call is for these, which then counts them as misses.
        """
        found = self._compute_section(section, 1, 3)
        check_array('wanted', wanted, np.uint8, (found.bundles,))
        groups = np.unique(np.flatnonzero(wanted) // found.bundles_per_group)
        absent = [found.first_group + int(g) for g in groups[groups >= found.pinned]]
        self._cached.prefetch(found.first_group, absent, needed)

    def fetch(self, section: int, active: np.ndarray, importance: np.ndarray, deadline: float
              ) -> int:
        """Have active bundles in DRAM by ``deadline``, seconds of the monotonic clock.

        Groups whose active bundles have the largest sum of ``importance``, float32 [bundles], are
        read first, and none is begun after the deadline. Then ``active``, uint8 [bundles], becomes
        0 for bundles that are not in DRAM; returns how many of them were not 0.
        """
        found = self._compute_section(section, 1, 3)
        check_array('active', active, np.uint8, (found.bundles,), writable=True)
        check_array('importance', importance, np.float32, (found.bundles,))
        check(not np.isnan(importance).any(), 'importance', 0, 'free of NaN')
        check(0 <= deadline < 1e9, 'deadline', deadline, 'monotonic seconds, below 1e9')
        owners = np.arange(found.bundles) // found.bundles_per_group
        sums = np.bincount(owners, np.where(active, importance, 0))
        wanted = np.unique(owners[active > 0])
        wanted = wanted[wanted >= found.pinned]
        if not len(wanted):
            return 0
        check(self._cached.cache.size, 'set_cache', None, 'called before unpinned groups are used')
        wanted = wanted[np.argsort(-sums[wanted], kind='stable')]
        groups = (found.first_group + wanted).tolist()
        here = self._cached.fetch(found.first_group, groups, deadline)
        absent = np.isin(owners, wanted[~np.array(here)])
        left_out = int(np.count_nonzero(active[absent]))
        active[absent] = 0
        self._counters['left_out'] += left_out
        return left_out

    def read_rows(self, section: int, ids: np.ndarray, out: np.ndarray) -> None:
        """out [k, dim] = the rows ``ids`` int64 [k] of a section of single rows."""
        found = self._compute_section(section, 1)
        check(isinstance(ids, np.ndarray) and ids.ndim == 1, 'ids', ids, 'an int64 array [k]')
        check_array('ids', ids, np.int64, ids.shape)
        check_array('out', out, np.float32, (len(ids), self._dim), writable=True)
        outside = ids[(ids < 0) | (ids >= found.bundles)]
        check(not len(outside), 'ids', outside[:1], f'between 0 and {found.bundles - 1}')
        for start, group in self._weights.sparse(found, ids):
            here = np.flatnonzero((ids >= start) & (ids < start + len(group)))
            out[here] = group[ids[here] - start, 0]

    def stats(self) -> dict[str, int]:
        """Counters since the core was made; they only grow. See doc/architecture.md.

        In nanoseconds: ``read_ns``, while reads were under way; ``wait_ns``, while computing stood
        still for them (here always, reads being synchronous); ``claim_ns``, for finding slots.
        """
        counters = {**self._file.counters, **self._counters}
        return {**counters, 'wait_ns': counters['read_ns']}

    def close(self) -> None:
        """Free the slab and the file; a second call does nothing."""
        if not self._closed:
            self._closed = True
            self._file.close()
            self._slab.close()

    def _read_run(self, first_group: int, slots: list[int]) -> None:
        most = request_groups(self._group_bytes)
        for start in range(0, len(slots), most):
            self._file.read(first_group + start, slots[start:start + most])

    def _section(self, section: int) -> Section:
        check(0 <= section < len(self._sections), 'section', section,
              f'one of the {len(self._sections)} that were added')
        return self._sections[section]

    def _compute_section(self, section: int, least_rows: int,
                         most_rows: int | None = None) -> Section:
        self._check_open()
        found = self._section(section)
        rows = range(least_rows, (most_rows or least_rows) + 1)
        wanted = f'{rows[0]} or {rows[-1]}' if len(rows) > 1 else str(rows[0])
        check(found.rows in rows, 'section', section,
              f'one of bundles of {wanted} rows, it has {found.rows}')
        return found

    def _bundle_section(self, section: int, activation: str, bias: np.ndarray | None,
                        threshold: float) -> tuple[Section, ffn.Activation]:
        found = self._compute_section(section, 2, 3)
        act = ffn.activation_of(activation, threshold)
        if bias is not None:
            check(found.rows == 2, 'bias', type(bias).__name__,
                  'None for gated bundles (of 3 rows)')
            check_array('bias', bias, np.float32, (found.bundles,))
        return found, act

    def _section_of(self, group: int) -> str:
        for index, section in enumerate(self._sections):
            if 0 <= group - section.first_group < section.groups:
                return f'section {index}'
        return 'no section'

    def _check_open(self) -> None:
        if self._closed:
            raise RuntimeError('the neuron core is closed')
