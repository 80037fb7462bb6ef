"""The memory behind the cores: results never show it, its counters are what a model of it says."""

from itertools import pairwise
import math
import time

from core_cases import Setting, each_core
from core_oracle import write_neuron_file
import numpy as np
import pytest

from flash_llm_ros.store.errors import ChecksumError

PARTS = [(40, 0, 2), (61, 0, 1), (30, 2, 3), (55, 0, 1), (17, 2, 2), (23, 0, 1)]


@pytest.fixture(params=[('int8', 70), ('int4', 130), ('fp16', 45)],
                ids=['int8', 'int4', 'fp16'])
def made(request, tmp_path):
    codec, dim = request.param
    return write_neuron_file(tmp_path / 'neurons.bin', np.random.default_rng(dim), codec, dim,
                             1024, PARTS)


def everything(core, made, seed, rounds=2):
    """The bytes of all results of a mix of calls: that of a model's tokens, then any order."""
    rng = np.random.default_rng(seed)
    results = []

    def floats(*shape):
        return rng.standard_normal(shape).astype(np.float32)

    def call(index):
        part = made.sections[index]
        tokens = int(rng.choice([1, 1, 2, 6]))
        if part.rows == 1:
            out = floats(tokens, part.bundles)
            core.rows_dot(index, floats(tokens, part.dim), out, add=bool(rng.random() < 0.5))
            results.append(out)
            wanted = (rng.random(part.bundles) < 0.3).astype(np.uint8)
            core.prefetch(index, wanted)
            ids = rng.integers(0, part.bundles, 9)
            out = np.zeros((9, part.dim), np.float32)
            core.read_rows(index, ids, out)
            results.append(out)
        else:
            bias = None
            if part.rows == 2:
                out = np.zeros((tokens, part.bundles), np.float32)
                core.gate_up(index, floats(tokens, made.dim), out, 'silu')
                results.append(out)
                bias = floats(part.bundles)
            out = floats(tokens, made.dim)
            core.bundled(index, floats(tokens, made.dim), out, 'relu', bias)
            results.append(out)
            active = (rng.random(part.bundles) < 0.4).astype(np.uint8)
            core.prefetch(index, (rng.random(part.bundles) < 0.4).astype(np.uint8))
            out = floats(made.dim)
            core.bundled_sparse(index, floats(made.dim), active, out, 'silu', bias)
            results.append(out)

    for _ in range(rounds):
        for index in range(len(made.sections)):
            call(index)
    for _ in range(8):
        call(int(rng.integers(len(made.sections))))
    return [result.tobytes() for result in results]


@each_core
def test_results_do_not_depend_on_the_memory(made, core_class):
    everywhere = {index: part.groups for index, part in enumerate(made.sections)}
    reference = everything(Setting(everywhere).open(made, core_class), made, seed=1)
    rng = np.random.default_rng(2)
    smallest = Setting()
    settings = [smallest, Setting(cache=200), Setting(ring=(100, 3), order=[0, 1, 2, 3, 4, 5]),
                *(Setting.random(rng, made) for _ in range(25))]
    for setting in settings:
        core = setting.open(made, core_class)
        assert everything(core, made, seed=1) == reference, setting
        core.close()


class IdleGroups:
    """The least likely to be needed yields, found by looking; of equals the newest.

    A use is worth half after four tokens. What that comes to is counted in levels; a level is what
    one token without a use takes off.
    """

    HALF_LIFE = 4
    FADING = 2 ** (-1 / HALF_LIFE)
    MOST = 6 * HALF_LIFE

    def __init__(self):
        self.now = 0
        self.uses = {}          # group: weight, token of the latest look
        self.before = []        # (group, level), oldest first in each level
        self.current = []       # the same, idle since this token

    def __iter__(self):
        return (group for group, _ in self.before + self.current)

    def add(self, group, used):
        weight, token = self.uses.get(group, (0.0, 0))
        weight = float(np.float32(weight * self.FADING ** (self.now - token) + used))
        self.uses[group] = weight, self.now
        share = max(weight * (1 - self.FADING), 1e-9)
        level = self.MOST + math.floor(math.log2(share) * self.HALF_LIFE + 0.5)
        self.current.append((group, min(max(level, 0), self.MOST)))

    def take(self, groups):
        self.before = [pair for pair in self.before if pair[0] not in groups]
        self.current = [pair for pair in self.current if pair[0] not in groups]

    def yield_one(self):
        newest_first = [*reversed(self.current), *reversed(self.before)]
        group = min(newest_first, key=lambda pair: pair[1])[0]
        self.take([group])
        return group

    def token(self):
        self.now += 1
        fallen = [(group, max(level - 1, 0))
                  for group, level in sorted(self.before, key=lambda pair: pair[1])]
        self.before, self.current = fallen + self.current, []


class ModelOfTheCache:
    """What should happen in the cache, in the plainest words: lists, oldest first."""

    def __init__(self, slots, pinned):
        self.slots = slots
        self.pinned = pinned
        self.idle = IdleGroups()
        self.last_section = -1
        self.expected = []      # (section, group)
        self.unused = set()
        self.late = set()       # read for the next use, to which they are misses
        self.counts = dict.fromkeys(
            ('hits', 'misses', 'prefetched', 'prefetch_used', 'crc_checked'), 0)

    def present(self):
        return [*self.idle, *(group for _, group in self.expected)]

    def use(self, section, groups):
        batch, cached = [], []
        for group in groups:
            if group not in self.pinned and len(cached) == self.slots:
                self.use_batch(section, batch, cached)
                batch, cached = [], []
            batch.append(group)
            if group not in self.pinned:
                cached.append(group)
        self.use_batch(section, batch, cached)

    def use_batch(self, section, batch, cached):
        present = self.present()
        missing = [group for group in cached if group not in present]
        late = self.late.intersection(cached)
        self.late -= late
        self.counts['misses'] += len(missing) + len(late)
        self.counts['crc_checked'] += len(missing)
        foreseen = self.unused.intersection(cached)
        self.counts['hits'] += len(batch) - len(missing) - len(late) - len(foreseen)
        self.counts['prefetch_used'] += len(foreseen)
        if not cached:
            return
        self.unused.difference_update(cached)
        if section <= self.last_section:
            self.idle.token()
        self.last_section = section
        self.idle.take(cached)
        self.expected = [pair for pair in self.expected if pair[1] not in cached]
        self.settle(section)
        while len(self.present()) + len(cached) > self.slots:
            self.forget(self.idle.yield_one() if list(self.idle)
                        else self.expected.pop(0)[1])
        for group in cached:
            self.idle.add(group, True)

    def prefetch(self, section, groups, needed):
        if not any(group not in self.pinned for group in groups):
            return
        self.settle(section)
        groups = [group for group in groups if group not in self.pinned]
        here = [group for group in groups if group in self.present()]
        self.idle.take(here)
        self.expected = [pair for pair in self.expected if pair[1] not in here]
        self.expected += [(section, group) for group in here]
        for group in groups:
            if group in here:
                continue
            if len(self.present()) == self.slots:
                if not list(self.idle):
                    return
                self.forget(self.idle.yield_one())
            self.expected.append((section, group))
            (self.late if needed else self.unused).add(group)
            self.counts['prefetched'] += not needed
            self.counts['crc_checked'] += 1

    def forget(self, group):
        self.unused.discard(group)
        self.late.discard(group)

    def settle(self, section):
        for owner, group in self.expected:
            if owner == section:
                self.idle.add(group, False)
        self.expected = [pair for pair in self.expected if pair[0] != section]


@each_core
@pytest.mark.parametrize('seed', range(12))
def test_hits_and_misses(made, core_class, seed):
    rng = np.random.default_rng(seed)
    slots = int(rng.choice([1, 2, 5, 12, 40, 100]))
    pinned_groups = {1: int(rng.integers(0, 4)), 2: int(rng.integers(0, 4))}
    core = Setting(pinned_groups, cache=slots).open(made, core_class)
    pinned = {made.sections[index].first_group + group
              for index, count in pinned_groups.items() for group in range(count)}
    model = ModelOfTheCache(slots, pinned)
    model.counts['crc_checked'] = len(pinned)

    for _ in range(150):
        index = int(rng.choice([1, 2, 3, 5]))
        part = made.sections[index]
        chosen = (rng.random(part.bundles) < rng.choice([0, 0.05, 0.3, 1])).astype(np.uint8)
        groups = (part.first_group
                  + np.unique(np.flatnonzero(chosen) // part.bundles_per_group)).tolist()
        kind = rng.random()
        if kind < 0.3:
            needed = rng.random() < 0.5
            core.prefetch(index, chosen, needed)
            model.prefetch(index, groups, needed)
            # Once its reads are done, prefetching leaves nothing to chance.
            deadline = time.monotonic() + 30
            while (core.stats()['crc_checked'] < model.counts['crc_checked']
                   and time.monotonic() < deadline):
                time.sleep(0.001)
            time.sleep(0.002)
        elif part.rows == 1:
            ids = rng.permutation(np.repeat(np.flatnonzero(chosen), 2))
            core.read_rows(index, ids, np.zeros((len(ids), made.dim), np.float32))
            model.use(index, groups)
        else:
            core.bundled_sparse(index, np.ones(made.dim, np.float32), chosen,
                                np.zeros(made.dim, np.float32), 'relu')
            model.use(index, groups)
        stats = core.stats()
        assert {name: stats[name] for name in model.counts} == model.counts
    assert stats['flash_bytes'] == stats['crc_checked'] * made.group_bytes
    assert stats['flash_reads'] <= stats['crc_checked']
    assert stats['retries'] == 0


@each_core
def test_layer_after_layer_the_window_keeps_its_share(tmp_path, core_class):
    """Where every token needs everything, least recently used groups would never be met again."""
    made = write_neuron_file(tmp_path / 'neurons.bin', np.random.default_rng(0), 'int8', 32, 512,
                             [(9, 1, 1)] * 8)
    core = Setting(cache=36).open(made, core_class)
    for _ in range(50):
        for section in range(8):
            core.read_rows(section, np.arange(9), np.zeros((9, 32), np.float32))
    assert 0.35 <= core.stats()['hits'] / (50 * 72) <= 36 / 72


@each_core
def test_neighbours_are_read_together(tmp_path, core_class):
    made = write_neuron_file(tmp_path / 'neurons.bin', np.random.default_rng(0), 'int8', 32, 512,
                             [(60, 1, 1)])
    core = Setting(cache=60).open(made, core_class)
    ids = np.array([3, 4, 5, 9, 20, 21])
    core.read_rows(0, ids, np.zeros((6, 32), np.float32))
    assert core.stats()['flash_reads'] == 3
    ids = np.array([3, 4, 5, 6, 7, 8, 9, 20, 21, 40])
    core.read_rows(0, ids, np.zeros((10, 32), np.float32))
    assert core.stats()['flash_reads'] == 5
    assert core.stats()['flash_bytes'] == 10 * 512


@each_core
def test_dense_calls_count_and_read_each_group_once(made, core_class):
    """The native core may have read further ahead, but never more than its ring holds."""
    part = made.sections[0]
    core = Setting({0: 3}, ring=(4, 3)).open(made, core_class)
    x, h = np.ones((2, made.dim), np.float32), np.zeros((2, part.bundles), np.float32)
    for calls in (1, 2, 3):
        core.gate_up(0, x, h, 'relu')
        stats = core.stats()
        assert stats['hits'] == 3 * calls
        assert stats['misses'] == (part.groups - 3) * calls
        assert stats['crc_checked'] == 3 + (part.groups - 3) * calls
        assert stats['flash_bytes'] == stats['crc_checked'] * made.group_bytes


@each_core
@pytest.mark.parametrize('ring', [(1, 1), (3, 2), (50, 4)])
def test_reading_ahead_wastes_nothing_in_order(made, ring, core_class):
    """Over tokens in the stream order, every group is read once a token, wrap-around included."""
    order = [0, 2, 4]
    core = Setting({2: 3}, ring=ring, order=order).open(made, core_class)
    streamed = sum(made.sections[index].groups for index in order) - 3
    x, out = np.ones((1, made.dim), np.float32), np.zeros((1, made.dim), np.float32)
    for token in range(1, 8):
        core.gate_up(0, x, np.zeros((1, made.sections[0].bundles), np.float32), 'silu')
        core.bundled(2, x, out, 'silu')
        core.gate_up(4, x, np.zeros((1, made.sections[4].bundles), np.float32), 'silu')
        used = 3 + streamed * token
        assert used <= core.stats()['crc_checked'] <= used + ring[0] * ring[1]
    core.close()


@each_core
def test_a_fully_pinned_core_reads_nothing_more(made, core_class):
    pinned = {index: part.groups for index, part in enumerate(made.sections)}
    core = Setting(pinned, order=[0, 1, 2, 3, 4, 5]).open(made, core_class)
    before = core.stats()
    assert before['flash_bytes'] == made.groups * made.group_bytes
    everything(core, made, seed=3)
    after = core.stats()
    for name in ('flash_bytes', 'flash_reads', 'crc_checked', 'misses', 'prefetched', 'read_ns',
                 'wait_ns'):
        assert after[name] == before[name], name
    assert after['hits'] > 0


@each_core
def test_time_is_counted_where_it_goes(made, core_class):
    """Reading and waiting only where something has to be read; slots are claimed every time."""
    parts = [index for index, part in enumerate(made.sections) if part.rows == 1]
    core = Setting(cache=sum(made.sections[index].groups for index in parts)
                   ).open(made, core_class)
    counts, elapsed = [core.stats()], []
    for _ in range(2):
        begin = time.monotonic_ns()
        for index in parts:
            ids = np.arange(made.sections[index].bundles)
            core.read_rows(index, ids, np.zeros((len(ids), made.dim), np.float32))
        elapsed.append(time.monotonic_ns() - begin)
        counts.append(core.stats())
    cold, warm = ({name: after[name] - before[name] for name in ('read_ns', 'wait_ns', 'claim_ns')}
                  for before, after in pairwise(counts))
    assert 0 <= cold['wait_ns'] <= elapsed[0]
    assert 0 < cold['read_ns'] <= elapsed[0]
    assert 0 < cold['claim_ns'] < elapsed[0]
    assert (warm['read_ns'], warm['wait_ns']) == (0, 0)
    assert 0 < warm['claim_ns'] < elapsed[1]
    core.close()


@each_core
def test_pinned_and_streamed_groups_take_turns(tmp_path, core_class):
    """Else the ring would be full, and the device idle, while a large pinned share is computed.

    A fault shows what has been computed by then.
    """
    made = write_neuron_file(tmp_path / 'neurons.bin', np.random.default_rng(0), 'int8', 64, 1024,
                             [(150, 0, 1)])
    part = made.sections[0]
    core = Setting({0: 6}, ring=(1, 2)).open(made, core_class)
    x = np.ones((1, made.dim), np.float32)
    out = np.full((1, part.bundles), np.nan, np.float32)
    assert part.groups == 10
    made.flip_bit(part.first_group + 8, 10)
    with pytest.raises(ChecksumError):
        core.rows_dot(0, x, out)
    done = ~np.isnan(out).reshape(part.groups, part.bundles_per_group)
    assert done.all(axis=1).tolist() == [True] * 5 + [False, True, True, False, False]
    made.flip_bit(part.first_group + 8, 10)
    core.rows_dot(0, x, out)
    assert np.allclose(out[0], part.weights[:, 0] @ x[0], rtol=1e-3, atol=1e-3)
    core.close()


@each_core
def test_pinning_later_and_new_orders(made, core_class):
    """Neither changes results, whatever has been read ahead by then."""
    everywhere = {index: part.groups for index, part in enumerate(made.sections)}
    reference = everything(Setting(everywhere).open(made, core_class), made, seed=4)
    core = made.open(core_class, 60)
    core.set_ring(2, 3)
    core.set_cache(6)
    core.set_stream_order([0, 2, 4])
    core.pin(0, 5)
    assert everything(core, made, seed=4) == reference
    core.pin(2, 2)
    assert everything(core, made, seed=4) == reference
    core.set_stream_order([4, 0, 2, 0])
    assert everything(core, made, seed=4) == reference
    core.set_stream_order([])
    assert everything(core, made, seed=4) == reference
