"""The read planner against brute force over every way to split the groups into requests."""

from itertools import combinations, pairwise

from core_cases import Setting, each_core
from core_oracle import write_neuron_file
from hypothesis import given, settings
from hypothesis import strategies as st
import numpy as np
import pytest

from flash_llm_ros._native import plan_reads

# Exact in binary, so that ways of equal cost have equal sums.
REQUEST_COSTS = st.integers(1, 64).map(lambda eighths: eighths / 8)


def ascending(most, highest):
    return st.sets(st.integers(0, highest), max_size=most).map(sorted)


def cost_of(groups, reads, request_groups):
    return sum(request_groups + groups[end - 1] - groups[begin] + 1 for begin, end in reads)


def groups_read(groups, reads):
    return sum(groups[end - 1] - groups[begin] + 1 for begin, end in reads)


def every_partition(groups, largest):
    count = len(groups)
    for cuts in range(max(count, 1)):
        for inner in combinations(range(1, count), cuts):
            bounds = [0, *inner, count] if count else [0]
            reads = list(pairwise(bounds))
            if all(groups[end - 1] - groups[begin] < largest for begin, end in reads):
                yield reads


@settings(max_examples=200, deadline=None)
@given(groups=ascending(9, 30), request_groups=REQUEST_COSTS, largest=st.integers(1, 32))
def test_no_other_way_is_cheaper(groups, request_groups, largest):
    found = plan_reads(groups, request_groups, largest)
    ways = [(cost_of(groups, reads, request_groups), groups_read(groups, reads))
            for reads in every_partition(groups, largest)]
    assert (cost_of(groups, found, request_groups), groups_read(groups, found)) == min(ways)


@settings(max_examples=200, deadline=None)
@given(groups=ascending(300, 2**31), request_groups=st.floats(1e-6, 1e6),
       largest=st.integers(1, 2000))
def test_every_group_is_read_once_within_the_limit(groups, request_groups, largest):
    reads = plan_reads(groups, request_groups, largest)
    assert [i for begin, end in reads for i in range(begin, end)] == list(range(len(groups)))
    assert all(groups[end - 1] - groups[begin] < largest for begin, end in reads)


@pytest.fixture
def made(tmp_path):
    """60 groups of one row each."""
    return write_neuron_file(tmp_path / 'neurons.bin', np.random.default_rng(0), 'int8', 32, 512,
                             [(60, 1, 1)])


def read(core, made, rows):
    out = np.zeros((len(rows), 32), np.float32)
    core.read_rows(0, np.array(rows), out)
    assert np.array_equal(out, made.sections[0].weights[rows, 0].astype(np.float32))


@each_core
def test_gaps_are_read_counted_and_thrown_away(made, core_class):
    core = Setting(cache=60).open(made, core_class)
    core.set_read_costs(5 * 512 * 1e-9, 1e-9, 20 * 512)    # a request costs as much as 5 groups
    read(core, made, [1, 3, 8, 9, 15, 21, 25])               # gaps of 1, 4, 0, 5, 5, 3 groups
    stats = core.stats()
    assert stats['flash_reads'] == 3                        # 1-9, 15, 21-25
    assert stats['gap_groups'] == 1 + 4 + 3
    assert stats['flash_bytes'] == 512 * (9 + 1 + 5)
    assert stats['misses'] == stats['crc_checked'] == 7
    read(core, made, [2, 8])                                 # what lay in a gap was not kept
    assert core.stats()['misses'] == 8
    read(core, made, [30, 32, 34, 36, 38, 40, 42, 44, 46, 48, 50])   # 21 groups, 20 at most
    assert core.stats()['flash_reads'] == 3 + 1 + 2


@each_core
def test_a_corrupt_group_in_a_gap_harms_nobody(made, core_class):
    made.flip_bit(5, 100)
    core = Setting(cache=60).open(made, core_class)
    core.set_read_costs(1.0, 1e-9, 1 << 20)
    read(core, made, [4, 6])
    assert core.stats()['gap_groups'] == 1
    assert core.stats()['retries'] == 0


@each_core
@pytest.mark.parametrize(('arguments', 'sentence'), [
    ((0.0, 1e-9, 4096), 'request_seconds: .* is wrong, must be above 0'),
    ((float('nan'), 1e-9, 4096), 'request_seconds: nan is wrong, must be above 0'),
    ((1e-5, -1e-9, 4096), 'byte_seconds: .* is wrong, must be above 0'),
    ((1e-5, float('inf'), 4096), 'byte_seconds: inf is wrong, must be above 0'),
    ((1e-5, 1e-9, 0), 'largest_bytes: 0 is wrong, must be at least 1'),
])
def test_wrong_costs_are_refused(made, core_class, arguments, sentence):
    core = Setting().open(made, core_class)
    with pytest.raises(ValueError, match=sentence):
        core.set_read_costs(*arguments)
