"""Reading until a deadline: what arrived is used, what did not is named, nothing else changes."""

from core_cases import Setting, each_core
from core_oracle import gated, write_neuron_file
import numpy as np
import pytest

from flash_llm_ros.store.errors import ChecksumError

DIM = 40
PARTS = [(400, 0, 1), (200, 0, 3)]      # 15 rows or 5 bundles to a group
FAR = 5e8


@pytest.fixture
def made(tmp_path):
    return write_neuron_file(tmp_path / 'neurons.bin', np.random.default_rng(1), 'int8', DIM, 1024,
                             PARTS)


def flags(rng, part, share=0.5):
    return (rng.random(part.bundles) < share).astype(np.uint8)


@each_core
def test_without_time_only_what_is_here_is_used(made, core_class):
    rng = np.random.default_rng(2)
    core = Setting(pinned={0: 6, 1: 10}, cache=80).open(made, core_class)
    for section, part in enumerate(made.sections):
        owners = np.arange(part.bundles) // part.bundles_per_group
        warm = np.zeros(part.bundles, np.uint8)
        warm[owners == part.groups - 2] = 1
        core.add_rows_sparse(0, np.ones(400, np.float32), warm, np.zeros(DIM, np.float32)) \
            if part.rows == 1 else core.bundled_sparse(
                1, np.ones(DIM, np.float32), warm, np.zeros(DIM, np.float32), 'silu')
        active = flags(rng, part)
        before, counts = active.copy(), core.stats()
        importance = rng.random(part.bundles).astype(np.float32)
        left_out = core.fetch(section, active, importance, 0.0)
        here = (owners < (6, 10)[section]) | (owners == part.groups - 2)
        assert np.array_equal(active, before * here)
        assert left_out == np.count_nonzero(before * ~here) > 0
        out = np.zeros(DIM, np.float32)
        x = rng.standard_normal(DIM).astype(np.float32)
        h = rng.standard_normal(part.bundles).astype(np.float32)
        if part.rows == 1:
            core.add_rows_sparse(0, h, active, out)
            wanted = (h * active) @ part.weights[:, 0]
        else:
            core.bundled_sparse(1, x, active, out, 'silu')
            wanted = (gated(part, x[None], 'silu')[0] * active) @ part.weights[:, 2]
        assert np.allclose(out, wanted, rtol=1e-4, atol=1e-4)
        after = core.stats()
        assert after['flash_reads'] == counts['flash_reads']
        assert after['misses'] == counts['misses']
        assert after['left_out'] - counts['left_out'] == left_out


@each_core
def test_with_time_nothing_changes(made, core_class):
    """The same bytes and the same counters as without a deadline, over many calls."""
    plain, timed = (Setting(pinned={0: 6}, cache=70).open(made, core_class) for _ in range(2))
    for seed in range(12):
        rng = np.random.default_rng(seed)
        section = seed % 2
        part = made.sections[section]
        active = flags(rng, part, 0.2)
        importance = rng.random(part.bundles).astype(np.float32)
        fetched = active.copy()
        assert timed.fetch(section, fetched, importance, FAR) == 0
        assert np.array_equal(fetched, active)
        outs = np.zeros((2, DIM), np.float32)
        h = rng.standard_normal(part.bundles).astype(np.float32)
        x = rng.standard_normal(DIM).astype(np.float32)
        for core, out in zip((plain, timed), outs, strict=True):
            if section == 0:
                core.add_rows_sparse(0, h, active, out)
            else:
                core.bundled_sparse(1, x, active, out, 'relu')
        assert outs[0].tobytes() == outs[1].tobytes()
        names = ('hits', 'misses', 'crc_checked', 'left_out', 'prefetched')
        assert [plain.stats()[name] for name in names] == [timed.stats()[name] for name in names]


@each_core
def test_a_fault_is_told(made, core_class):
    core = Setting(cache=60).open(made, core_class)
    made.flip_bit(made.sections[0].first_group + 7, 3)
    active, importance = np.ones(400, np.uint8), np.ones(400, np.float32)
    for _ in range(2):
        with pytest.raises(ChecksumError, match='group 7 '):
            core.fetch(0, active, importance, FAR)
    assert active.all()
    made.flip_bit(made.sections[0].first_group + 7, 3)
    assert core.fetch(0, active, importance, FAR) == 0


@each_core
def test_a_window_too_small_keeps_the_most_important(made, core_class):
    core = Setting(cache=5).open(made, core_class)
    part = made.sections[0]
    owners = np.arange(part.bundles) // part.bundles_per_group
    importance = np.where(np.isin(owners, [3, 8, 9, 20, 25]), 2, 1).astype(np.float32)
    importance[owners == 11] = 30
    active = np.ones(400, np.uint8)
    active[owners == 11] = 0        # not wanted, however important
    core.fetch(0, active, importance, FAR)
    assert set(owners[active > 0]) == {3, 8, 9, 20, 25}


@each_core
@pytest.mark.parametrize(('place', 'wrong', 'message'), [
    (0, 7, 'section: 7'),
    (1, np.ones(400, bool), 'active: bool'),
    (1, np.ones(399, np.uint8), 'active: '),
    (2, np.ones(400), 'importance: float64'),
    (2, np.full(400, np.nan, np.float32), 'importance: .*NaN'),
    (3, -1.0, 'deadline: -1'),
    (3, float('nan'), 'deadline: nan'),
    (3, float('inf'), 'deadline: inf'),
])
def test_wrong_arguments(made, core_class, place, wrong, message):
    core = Setting(cache=50).open(made, core_class)
    arguments = [0, np.ones(400, np.uint8), np.ones(400, np.float32), FAR]
    core.fetch(*arguments)
    arguments[place] = wrong
    with pytest.raises(ValueError, match=message):
        core.fetch(*arguments)


SLOW = """
import time
big = write_neuron_file(Path(str(made.path) + '.big'), np.random.default_rng(2), 'int8', 64, 1024,
                        [(3000, 0, 1)])
part = big.sections[0]
core = Setting(cache=200, options={'reads_in_flight': 2}).open(big, core_class)
rng = np.random.default_rng(3)
active = (rng.random(3000) < 0.6).astype(np.uint8)
importance = rng.random(3000).astype(np.float32)
owners = np.arange(3000) // part.bundles_per_group
sums = np.bincount(owners, importance * active)
wanted = active.copy()
before = core.stats()
left_out = core.fetch(0, active, importance, time.monotonic() + 0.6)
reads = core.stats()['flash_reads'] - before['flash_reads']
arrived = np.unique(owners[active > 0])
ranks = np.argsort(np.argsort(-sums, kind='stable'))[arrived]
time.sleep(0.4)
late = core.stats()['flash_reads'] - before['flash_reads'] - reads
h, out = rng.standard_normal(3000).astype(np.float32), np.zeros(64, np.float32)
core.add_rows_sparse(0, h, active, out)
after = core.stats()
print('some, not all:', 0 < len(arrived) < part.groups)
print('in order of importance:', ranks.max() < len(arrived) + 64)
print('begun reads are finished, others not begun:', late <= 2)
print('counted:', left_out == np.count_nonzero(wanted) - np.count_nonzero(active)
      == after['left_out'], after['misses'] - before['misses'] == len(arrived))
print('right:', np.allclose(out, (h * active) @ part.weights[:, 0], rtol=1e-4, atol=1e-4))
print(core.fetch(0, wanted, importance, 5e8))
core.close()
"""


def test_a_slow_flash_delivers_the_most_important(shimmed):
    """Each read takes up to 60 ms: how many are waited for is bounded by the deadline."""
    assert shimmed(SLOW, DELAYS='60000').splitlines() == [
        'some, not all: True', 'in order of importance: True',
        'begun reads are finished, others not begun: True', 'counted: True True', 'right: True',
        '0']
