"""As many reads in flight as may be, never more, each done once, checked while others are read."""

from collections import Counter
import errno

from core_cases import needs_uring
import pytest

# Requests of 128 KiB (of the ring) and of several sizes (of the cache), in passes that must agree.
PASSES = """
import ctypes
made = write_neuron_file(made.path.with_name('large.bin'), np.random.default_rng(2), 'int8',
                         1024, 8192, [(1400, 0, 1)])
part = made.sections[0]
x = np.random.default_rng(3).standard_normal((1, 1024)).astype(np.float32)
picks = [np.random.default_rng(seed).random(1400) < share
         for seed, share in enumerate([0.02, 0.2, 0.5])]
core = Setting(ring=(40, 8), cache=60, read_costs=(2e-5, 1e-9, 1 << 17), order=[0],
               options={'reads_in_flight': READS_IN_FLIGHT, 'threads': 2}).open(made, core_class)
for number in range(PASSES):
    out = np.zeros((1, 1400), np.float32)
    core.rows_dot(0, x, out)
    assert np.allclose(out[0], part.weights[:, 0] @ x[0], rtol=1e-3, atol=1e-2)
    ids = np.flatnonzero(picks[number % 3])
    core.prefetch(0, picks[(number + 1) % 3].astype(np.uint8))
    rows = np.zeros((len(ids), 1024), np.float32)
    core.read_rows(0, ids, rows)
    assert np.array_equal(rows, part.weights[ids, 0].astype(np.float32))
stats = core.stats()
core.close()
print(ctypes.CDLL(None).most_in_flight(), stats['retries'], core.stats()['flash_reads'])
"""
each_reader = pytest.mark.parametrize('shimmed', [
    'threads',
    pytest.param('io_uring', marks=needs_uring),
], indirect=True)
APART = 79      # faults of two reads, so that what is read again is not at fault again


@pytest.fixture
def passes(shimmed):
    """Most reads in flight, reads repeated, and answers of the kernel."""
    def run(reads_in_flight, number, **settings):
        code = (PASSES.replace('READS_IN_FLIGHT', str(reads_in_flight))
                .replace('range(PASSES)', f'range({number})'))
        return [int(word) for word in shimmed(code, **settings).split()]
    return run


@each_reader
@pytest.mark.parametrize('reads_in_flight', [1, 2, 5, 24])
def test_no_more_in_flight_than_allowed_and_no_fewer(passes, reads_in_flight):
    most, retries, _ = passes(reads_in_flight, 6, DELAYS='300')
    assert (most, retries) == (reads_in_flight, 0)


@each_reader
@pytest.mark.parametrize('reads_in_flight', [1, 3, 20])
def test_failing_reads_among_many(passes, reads_in_flight):
    """Whatever goes wrong once, with whichever others in flight, every answer is right."""
    kinds = [str(errno.EIO), 'flip', str(errno.EINTR), 'flip', 'short', str(errno.ENOMEM)]
    faults = {5 + APART * i: kinds[i % len(kinds)] for i in range(12)}
    most, retries, answers = passes(
        reads_in_flight, 40, FAULTS=','.join(f'{n}:{kind}' for n, kind in faults.items()))
    assert answers > max(faults)
    assert most == reads_in_flight
    counted = Counter(faults.values())
    assert retries == 12 - counted[str(errno.EINTR)]


@each_reader
def test_the_next_read_begins_before_the_latest_is_checked(passes):
    """What is damaged as the next read begins is still found, so it was not checked before."""
    late = range(20, 20 + 20 * APART, APART)
    most, retries, answers = passes(1, 80, FAULTS=','.join(f'{n}:late' for n in late))
    assert most == 1
    assert answers > late[-1]
    assert retries > 0
