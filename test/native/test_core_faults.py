"""Broken files and failing reads: typed errors that name the place, and a core that goes on."""

import errno
import os
import re
import time

from core_cases import Setting, each_core, needs_uring
from core_oracle import gated, write_neuron_file
import numpy as np
import pytest

from flash_llm_ros.store.errors import ChecksumError, ErrorCode, ReadFailedError

DIM, GROUP, IDENTITY = 64, 1024, 0x0123456789ABCDEF
PARTS = [(35, 0, 2), (45, 0, 1), (24, 0, 3)]


@pytest.fixture
def made(tmp_path):
    return write_neuron_file(tmp_path / 'neurons.bin', np.random.default_rng(1), 'int8', DIM,
                             GROUP, PARTS, IDENTITY)


def floats(*shape):
    return np.ones(shape, np.float32)


def place(made, section, local):
    """The start of the sentence about a group, as a pattern."""
    group = made.sections[section].first_group + local
    return re.escape(f'neurons.bin: group {group} (section {section}, byte {group * GROUP})')


def gate_up(core, made):
    h = np.zeros((2, 35), np.float32)
    core.gate_up(0, floats(2, DIM), h, 'silu')
    assert np.allclose(h, gated(made.sections[0], floats(2, DIM), 'silu'), rtol=1e-4, atol=1e-4)


def read_scattered(core, made, groups):
    """A row of each of these groups of section 1, by way of the cache."""
    part = made.sections[1]
    ids = np.array(groups, np.int64) * part.bundles_per_group
    out = np.zeros((len(ids), DIM), np.float32)
    core.read_rows(1, ids, out)
    assert np.array_equal(out, part.weights[ids, 0].astype(np.float32))


@each_core
@pytest.mark.parametrize('byte', [0, 500, GROUP - 5, GROUP - 4, GROUP - 1])
def test_a_flipped_bit_is_found_everywhere(made, core_class, byte):
    core = Setting(ring=(2, 2), cache=4).open(made, core_class)
    gate_up(core, made)
    for section, local, call in [(0, 3, lambda: gate_up(core, made)),
                                 (1, 2, lambda: read_scattered(core, made, [0, 1, 2]))]:
        group = made.sections[section].first_group + local
        before = core.stats()['retries']
        made.flip_bit(group, byte, bit=6)
        for _ in range(2):
            # Chunks read before the flip may still be good; a second call meets the bad one.
            try:
                call()
            except ChecksumError as error:
                assert error.code == ErrorCode.CHECKSUM_MISMATCH
                assert re.search(place(made, section, local) + r': CRC32C is [0-9a-f]{8} instead '
                                 r'of [0-9a-f]{8}, twice; damaged, or of another place or '
                                 r'store$', str(error))
                break
        else:
            pytest.fail('the flipped bit was not found')
        assert core.stats()['retries'] > before
        with pytest.raises(ChecksumError, match=place(made, section, local)):
            call()
        made.flip_bit(group, byte, bit=6)
        call()
        call()
    core.close()


MISPLACED = {
    'swapped': lambda groups: [*groups[:4], groups[5], groups[4], *groups[6:]],
    'copied': lambda groups: [*groups[:5], groups[4], *groups[6:]],
    'shifted': lambda groups: [*groups[1:], groups[0]],
    'written over': lambda groups: [*groups[:3], groups[0], *groups[4:]],
}


@each_core
@pytest.mark.parametrize('damage', [*MISPLACED, 'of another store'])
def test_a_good_group_of_another_place_is_found(tmp_path, core_class, damage):
    """Cached, streamed, pinned: from its own bytes alone nobody sees that it is the wrong one."""
    made, other = (write_neuron_file(tmp_path / name, np.random.default_rng(1), 'int8', DIM, GROUP,
                                     [(150, 0, 1)], identity)
                   for name, identity in (('neurons.bin', 1 << 63), ('other.bin', 1)))
    right, others = ([file.path.read_bytes()[at:at + GROUP]
                      for at in range(0, made.groups * GROUP, GROUP)] for file in (made, other))
    wrong = others if damage == 'of another store' else MISPLACED[damage](right)
    bad = [number for number, group in enumerate(wrong) if group != right[number]]
    assert made.groups == 10 and bad
    made.path.write_bytes(b''.join(wrong))
    core = Setting(ring=(2, 2), cache=10).open(made, core_class)
    for number in range(10):
        ids, out = np.array([15 * number]), floats(1, DIM)
        if number in bad:
            with pytest.raises(ChecksumError, match=place(made, 0, number)):
                core.read_rows(0, ids, out)
        else:
            core.read_rows(0, ids, out)
            assert np.array_equal(out[0], made.sections[0].weights[ids[0], 0].astype(np.float32))
    with pytest.raises(ChecksumError, match=place(made, 0, bad[0])):
        core.rows_dot(0, floats(1, DIM), floats(1, 150))
    core.close()
    core = made.open(core_class, 10)
    with pytest.raises(ChecksumError):
        core.pin(0, 10)
    core.pin(0, bad[0])
    core.close()


@each_core
def test_good_neighbours_of_a_bad_group_stay_cached(made, core_class):
    core = Setting(cache=8).open(made, core_class)
    bad = made.sections[1].first_group + 2
    made.flip_bit(bad, 10)
    with pytest.raises(ChecksumError, match=place(made, 1, 2)):
        read_scattered(core, made, [0, 2])
    before = core.stats()
    read_scattered(core, made, [0])
    after = core.stats()
    assert (after['hits'], after['misses']) == (before['hits'] + 1, before['misses'])
    made.flip_bit(bad, 10)
    read_scattered(core, made, [0, 2])
    assert core.stats()['misses'] == before['misses'] + 1


@each_core
def test_the_whole_cache_survives_bad_groups(made, core_class):
    """As many failures as there are slots, and more, must not use up the slots."""
    core = Setting(cache=2).open(made, core_class)
    bad = made.sections[1].first_group
    made.flip_bit(bad + 0, 10)
    made.flip_bit(bad + 2, 10)
    for _ in range(5):
        for groups in ([0, 2], [0], [2], [0, 1, 2]):
            with pytest.raises(ChecksumError):
                read_scattered(core, made, groups)
    read_scattered(core, made, [1])
    made.flip_bit(bad + 0, 10)
    made.flip_bit(bad + 2, 10)
    for _ in range(2):
        read_scattered(core, made, [0, 1, 2])


@each_core
def test_a_failed_pin_leaves_nothing(made, core_class):
    part = made.sections[1]
    core = made.open(core_class, part.groups + 3)
    made.flip_bit(part.first_group + 1, 77)
    with pytest.raises(ChecksumError, match=place(made, 1, 1)):
        core.pin(1, part.groups)
    before = core.stats()
    core.set_cache(3)  # the slots were given back, and what is left is exactly enough
    made.flip_bit(part.first_group + 1, 77)
    read_scattered(core, made, [0])
    assert core.stats()['misses'] == before['misses'] + 1  # nothing counts as pinned
    core.pin(1, part.groups)
    read_scattered(core, made, [0, 1])
    assert core.stats()['misses'] == before['misses'] + 1


@each_core
def test_a_failed_prefetch_is_silent(made, core_class):
    core = Setting(cache=4).open(made, core_class)
    part = made.sections[1]
    made.flip_bit(part.first_group + 1, 3)
    wanted = np.zeros(part.bundles, np.uint8)
    wanted[part.bundles_per_group] = 1
    core.prefetch(1, wanted)
    deadline = time.monotonic() + 30
    while core.stats()['crc_checked'] < 2 and time.monotonic() < deadline:
        time.sleep(0.001)
    time.sleep(0.01)
    stats = core.stats()
    assert (stats['retries'], stats['crc_checked'], stats['prefetched']) == (1, 2, 1)
    with pytest.raises(ChecksumError, match=place(made, 1, 1)):
        read_scattered(core, made, [1])
    made.flip_bit(part.first_group + 1, 3)
    read_scattered(core, made, [1])
    assert core.stats()['prefetch_used'] == 0


@each_core
def test_a_file_that_became_shorter(made, core_class):
    core = Setting(ring=(3, 2), cache=3).open(made, core_class)
    gate_up(core, made)
    read_scattered(core, made, [0])
    whole = made.path.read_bytes()
    cut = made.sections[0].first_group + 2
    os.truncate(made.path, cut * GROUP + 512)
    with pytest.raises(ReadFailedError, match=r'neurons.bin: group \d+ \(section 0, byte \d+\): '
                                              r'read ended after \d+ of \d+ bytes twice; the '
                                              r'file was truncated') as found:
        for _ in range(3):
            gate_up(core, made)
    assert found.value.code == ErrorCode.READ_FAILED
    with pytest.raises(ReadFailedError, match=place(made, 1, 2) + ': read ended after 0 of 1024'):
        read_scattered(core, made, [0, 2])
    read_scattered(core, made, [0])  # still cached
    made.path.write_bytes(whole)
    for _ in range(2):
        gate_up(core, made)
        read_scattered(core, made, [0, 1, 2])


@each_core
def test_a_fault_far_ahead_waits_for_its_turn(made, core_class):
    """What is read ahead and bad must not disturb the calls before it."""
    core = Setting(ring=(4, 30)).open(made, core_class)
    bad = made.sections[2].first_group + 1
    made.flip_bit(bad, 9)
    core.set_stream_order([0, 2])
    for _ in range(3):
        gate_up(core, made)
        with pytest.raises(ChecksumError, match=place(made, 2, 1)):
            core.bundled(2, floats(1, DIM), floats(1, DIM), 'relu')
    made.flip_bit(bad, 9)
    gate_up(core, made)
    core.bundled(2, floats(1, DIM), floats(1, DIM), 'relu')


READ_ONCE = """
core = Setting(cache=20, options={'reads_in_flight': 1}).open(made, core_class)
ids, out = np.arange(45), np.zeros((45, 64), np.float32)
try:
    core.read_rows(1, ids, out)
    print('good', np.array_equal(out, made.sections[1].weights[:, 0].astype(np.float32)))
except Exception as error:
    print(type(error).__name__, error)
print(core.stats()['retries'], core.stats()['flash_reads'], core.direct)
core.read_rows(1, ids, out)
"""


@pytest.mark.parametrize('fault', [str(errno.EIO), 'short', str(errno.EINVAL)])
def test_one_failed_read_is_repeated(shimmed, fault):
    lines = shimmed(READ_ONCE, FAULTS=f'{shimmed.first}:{fault}').splitlines()
    assert lines == ['good True', '1 2 True']


@pytest.mark.parametrize(('fault', 'sentence'), [
    (str(errno.EIO), r'read failed twice: Input/output error; `dmesg` may say more$'),
    (str(errno.ENOMEM), r'read failed twice: Cannot allocate memory; '),
    ('short', r'read ended after 512 of \d+ bytes twice; the file was truncated or the medium '
              r'is gone$'),
])
def test_two_failed_reads_are_an_error(shimmed, fault, sentence):
    first = shimmed.first
    lines = shimmed(READ_ONCE, FAULTS=f'{first}:{fault},{first + 1}:{fault}').splitlines()
    assert lines[0].startswith('ReadFailedError ')
    assert re.search(r'neurons.bin: group 5 \(section 1, byte 5120\): ' + sentence, lines[0])
    assert lines[1] == '1 2 True'


READ_WITH_GAPS = """
core = Setting(cache=20).open(made, core_class)
core.set_read_costs(1.0, 1e-9, 1 << 20)
ids, out = np.array([0, 44]), np.zeros((2, 64), np.float32)
core.read_rows(1, ids, out)
print('good', np.array_equal(out, made.sections[1].weights[ids, 0].astype(np.float32)))
stats = core.stats()
print(stats['retries'], stats['flash_reads'], stats['flash_bytes'] // made.group_bytes)
"""


def test_an_unreadable_gap_between_wanted_groups_is_left_out(shimmed):
    """The request that failed is repeated for each wanted group by itself."""
    assert shimmed(READ_WITH_GAPS, FAULTS='').splitlines() == ['good True', '0 1 3']
    lines = shimmed(READ_WITH_GAPS, FAULTS=f'{shimmed.first}:{errno.EIO}').splitlines()
    assert lines == ['good True', '1 3 2']


def test_reads_interrupted_by_a_signal_go_on(shimmed):
    lines = shimmed(READ_ONCE, FAULTS=f'{shimmed.first}:{errno.EINTR}').splitlines()
    assert lines[0] == 'good True'


BROKEN_RING = """
core = Setting(ring=(4, 3), cache=2, options={'reads_in_flight': 4}).open(made, core_class)
core.set_stream_order([0])
ids, out, h = np.arange(45), np.zeros((45, 64), np.float32), np.zeros((1, 35), np.float32)
x = np.ones((1, 64), np.float32)
for call in (lambda: core.read_rows(1, ids, out), lambda: core.gate_up(0, x, h, 'silu'),
             lambda: core.read_rows(1, ids, out)):
    try:
        call()
        print('good')
    except Exception as error:
        print(type(error).__name__, error)
core.prefetch(1, np.ones(45, np.uint8))
core.close()
"""


@pytest.mark.parametrize('shimmed', [pytest.param('io_uring', marks=needs_uring)], indirect=True)
@pytest.mark.parametrize('error_number', [errno.EBADF, errno.EINVAL])
@pytest.mark.parametrize('first', [2, 3, 5])
def test_a_ring_that_will_never_answer_again_is_a_fault(shimmed, first, error_number):
    """Reads that are under way and all later ones end, whatever waits for them."""
    lines = shimmed(BROKEN_RING, ENTER_FAULTS=f'{first}-1000000:{error_number}').splitlines()
    assert len(lines) == 3
    sentence = re.escape(f': io_uring failed: {os.strerror(error_number)}')
    for line in lines if first < 5 else lines[-1:]:
        assert re.fullmatch(r'ReadFailedError \S+neurons.bin: group \d+ .*' + sentence, line)


@pytest.mark.parametrize('shimmed', [pytest.param('io_uring', marks=needs_uring)], indirect=True)
@pytest.mark.parametrize('error_number', [errno.EAGAIN, errno.EBUSY, errno.ENOMEM, errno.EINTR])
def test_a_ring_that_is_busy_is_asked_again(shimmed, error_number):
    lines = shimmed(BROKEN_RING, ENTER_FAULTS=f'2-20:{error_number}').splitlines()
    assert lines == ['good'] * 3


@pytest.mark.parametrize('shimmed', [pytest.param('io_uring', marks=needs_uring)], indirect=True)
def test_a_ring_that_does_not_even_begin_is_refused(shimmed):
    lines = shimmed("""
for reader in ('auto', 'io_uring'):
    try:
        print(core_with(reader)(str(made.path), 1024, made.groups, 64, 4).reader)
    except Exception as error:
        print(type(error).__name__, error)
""", ENTER_FAULTS=f'1-1000000:{errno.EBADF}').splitlines()
    auto, insisting = lines
    assert auto == 'threads'
    assert insisting == (
        "ReaderUnavailableError reader is 'io_uring', which is not to be had here (a read of the "
        "file: Bad file descriptor); it must be 'auto' or 'threads'.")


JITTER = """
import hashlib
from test_core_window import everything
digest = lambda setting: hashlib.sha256(
    b''.join(everything(setting.open(made, core_class), made, seed=1))).hexdigest()
rng = np.random.default_rng(int(sys.argv[1]) if len(sys.argv) > 1 else 0)
print(len({digest(Setting.random(rng, made)) for _ in range(6)}), digest(Setting()))
"""


def test_results_do_not_depend_on_how_long_reads_take(shimmed):
    """The same bytes whether reads take no time or up to a millisecond each, out of order."""
    at_once, delayed = shimmed(JITTER), shimmed(JITTER, DELAYS='1000')
    assert at_once == delayed
    assert at_once.startswith('1 ')


@each_core
def test_what_failed_while_read_ahead_is_read_anew(made, core_class):
    """A fault that is gone by the time the chunk is wanted disturbs nobody."""
    once_round = sum(-(-made.sections[index].groups // 4) for index in (0, 2))
    core = Setting(ring=(4, once_round)).open(made, core_class)
    bad = made.sections[2].first_group + 1
    made.flip_bit(bad, 9)
    core.set_stream_order([0, 2])
    deadline = time.monotonic() + 30
    while core.stats()['retries'] < 1 and time.monotonic() < deadline:
        time.sleep(0.001)
    time.sleep(0.01)    # and the second try has failed, too
    made.flip_bit(bad, 9)
    before = core.stats()
    gate_up(core, made)
    core.bundled(2, floats(1, DIM), floats(1, DIM), 'relu')
    assert core.stats()['retries'] == before['retries'] == 1


@each_core
def test_the_first_of_several_bad_groups_is_named(tmp_path, core_class):
    """A chunk is read by several requests, which end in any order."""
    made = write_neuron_file(tmp_path / 'neurons.bin', np.random.default_rng(1), 'int8', 64, 32768,
                             [(9600, 0, 1)])
    core = Setting(ring=(10, 2), cache=1).open(made, core_class)
    out = np.zeros((1, 9600), np.float32)
    core.rows_dot(0, floats(1, 64), out)
    assert np.allclose(out[0], made.sections[0].weights[:, 0].sum(axis=1), rtol=1e-4, atol=1e-4)
    groups = made.sections[0].groups
    # Ten groups are three requests of at most 128 KiB.
    assert core.stats()['flash_reads'] == groups // 10 * 3 + -(-(groups % 10) // 4)
    for bad in (9, 5, 2):
        made.flip_bit(bad, 100)
    for _ in range(10):
        with pytest.raises(ChecksumError, match=r'group 2 \(section 0'):
            core.rows_dot(0, floats(1, 64), out)
