"""What the core takes beside its slab, and that it goes on after memory ran out for a moment."""

from core_cases import needs_uring
from fault_fixtures import run_preloaded
import pytest

from flash_llm_ros import _native

GROUPS, SLOTS, GROUP = 200_000, 100_000, 512

OPENED = f"""
import ctypes, resource, sys
from flash_llm_ros import _native
shim = ctypes.CDLL(None)
shim.bytes_allocated.restype = ctypes.c_size_t

def resident():
    with open('/proc/self/statm') as file:
        return int(file.read().split()[1]) * resource.getpagesize()

def opened(cache_slots):
    core = _native.NeuronCore(sys.argv[1], {GROUP}, {GROUPS}, 64, {SLOTS}, reader='threads',
                              reads_in_flight=1, lock_memory=False)
    before = shim.bytes_allocated()
    core.set_cache(cache_slots)
    return core, shim.bytes_allocated() - before

opened(1)[0].close()        # what only the first one takes
before = resident()
core, allocated = opened({SLOTS})
print(allocated, resident() - before)
"""


def test_bookkeeping_is_what_is_allocated_and_resident(allocation_shim, tmp_path):
    """The plan's row of 10^5 slots over 2 * 10^5 groups, against the process."""
    path = tmp_path / 'neurons.bin'
    with path.open('wb') as file:
        file.truncate(GROUPS * GROUP)
    allocated, grown = map(int, run_preloaded(allocation_shim, OPENED, str(path)).split())
    planned = _native.bookkeeping_bytes(GROUPS, SLOTS)
    assert planned <= allocated <= planned + 2000       # the object itself
    assert abs(grown - (SLOTS * GROUP + planned)) < 1_000_000
    assert planned <= 12 * GROUPS + 32 * SLOTS


def test_bookkeeping_of_wrong_sizes():
    with pytest.raises(ValueError, match='groups: 0 is wrong, must be at least 1'):
        _native.bookkeeping_bytes(0, 5)
    with pytest.raises(ValueError, match='cache_slots: -1 is wrong, must be at least 0'):
        _native.bookkeeping_bytes(5, -1)


SHORT_OF_MEMORY = """
import ctypes, sys
import numpy as np
from core_cases import Setting, core_with
from core_oracle import write_neuron_file
from pathlib import Path
shim = ctypes.CDLL(None)
made = write_neuron_file(Path(sys.argv[1]), np.random.default_rng(1), 'int8', 64, 1024,
                         [(300, 0, 1), (35, 0, 1)])
part, streamed = made.sections
core = Setting(ring=(1, 2), cache=5).open(made, core_with(sys.argv[2]))
ids = [np.arange(first, 300, 60) for first in (0, 30)]      # five groups each, and no group twice
wanted = np.ones(300, np.uint8)
x = np.ones((1, 64), np.float32)

def read(which):
    out = np.zeros((5, 64), np.float32)
    core.read_rows(0, ids[which], out)
    assert np.array_equal(out, part.weights[ids[which], 0].astype(np.float32))

def stream():
    out = np.zeros((1, 35), np.float32)
    core.rows_dot(1, x, out)
    assert np.allclose(out[0], streamed.weights[:, 0].sum(axis=1), rtol=1e-3, atol=1e-3)

def order():
    core.set_stream_order([1])

def pin():
    fresh.pin(0, 10)

failures = {}
for call in (lambda: core.prefetch(0, wanted), lambda: core.prefetch(0, wanted, True),
             lambda: read(1), stream, order, pin):
    for left in range(1, 500):
        read(0)
        fresh = made.open(core_with(sys.argv[2]), 10, reads_in_flight=1)
        shim.fail_allocation(left)
        try:
            call()
            short = False
        except MemoryError:
            short = True
        unused = shim.allocations_left()
        shim.fail_allocation(0)
        if short:
            fresh.pin(0, 10)
        fresh.close()
        for which in (1, 0):
            read(which)
        stream()
        if unused:
            assert not short
            break
        failures[call] = failures.get(call, 0) + short
core.close()
print(*failures.values())
"""


@pytest.mark.parametrize('reader', ['threads', pytest.param('io_uring', marks=needs_uring)])
def test_each_allocation_may_fail_and_the_next_call_is_right(allocation_shim, tmp_path, reader):
    """Whichever of the calling thread's allocations fails: MemoryError at most, and no hang."""
    failures = run_preloaded(allocation_shim, SHORT_OF_MEMORY, str(tmp_path / 'neurons.bin'),
                             reader).split()
    assert len(failures) == 6
    assert all(int(count) >= 2 for count in failures)
