"""Wrong use of the core: each kind gets a clear error, and the core goes on working."""

import os
import threading

from core_cases import Setting
from core_oracle import write_neuron_file
import numpy as np
import pytest

from flash_llm_ros._native import NeuronCore
from flash_llm_ros.store.errors import ErrorCode, ReadFailedError

PARTS = [(20, 0, 2), (30, 0, 1), (10, 0, 3), (9, 0, 1, None, 20)]
DIM = 40


@pytest.fixture
def made(tmp_path):
    return write_neuron_file(tmp_path / 'neurons.bin', np.random.default_rng(1), 'int8', DIM, 512,
                             PARTS)


def floats(*shape):
    return np.ones(shape, np.float32)


@pytest.mark.parametrize(('arguments', 'message'), [
    ({'group_bytes': 500}, 'group_bytes: 500 is wrong, must be a multiple of 512'),
    ({'group_bytes': 0}, 'group_bytes: 0'),
    ({'groups': 0}, 'groups: 0'),
    ({'dim': 0}, 'dim: 0'),
    ({'slots': 0}, 'slots: 0'),
    ({'slots': -4}, 'slots: -4'),
    ({'reads_in_flight': 0}, 'reads_in_flight: 0'), ({'reader': 'mmap'}, "reader: 'mmap'"),
])
def test_wrong_constructor_arguments(made, arguments, message):
    right = {'path': str(made.path), 'group_bytes': 512, 'groups': made.groups, 'dim': DIM,
             'slots': 3}
    NeuronCore(**right).close()
    with pytest.raises(ValueError, match=message):
        NeuronCore(**{**right, **arguments})


def test_wrong_files(made, tmp_path):
    def core(path=made.path, groups=made.groups):
        return NeuronCore(str(path), 512, groups, DIM, 3)

    with pytest.raises(ReadFailedError, match=r'nowhere.bin: cannot be opened: No such file') as e:
        core(tmp_path / 'nowhere.bin')
    assert e.value.code == ErrorCode.READ_FAILED
    size = made.groups * 512
    with pytest.raises(ReadFailedError, match=f'neurons.bin: is {size} bytes long, must be '
                                              f'{size + 512}'):
        core(groups=made.groups + 1)
    with pytest.raises(ReadFailedError, match=f'is {size} bytes long'):
        core(groups=made.groups - 1)
    with pytest.raises(ReadFailedError):
        core(tmp_path)  # a folder
    core(made.path).close()


@pytest.mark.parametrize(('section', 'message'), [
    ((0, 0, 1, 1), 'bundles: 0'),
    ((0, 5, 0, 1), 'bundles_per_group: 0'),
    ((0, 5, 8, 1), 'bundles_per_group: 8'),
    ((0, 5, 1, 4), 'rows: 4'),
    ((0, 5, 1, 0), 'rows: 0'),
    ((-1, 5, 1, 1), 'first_group: -1'),
    ((20, 500, 7, 1), 'first_group: 20'),
])
def test_wrong_sections(made, section, message):
    core = NeuronCore(str(made.path), 512, made.groups, DIM, 3)
    with pytest.raises(ValueError, match=message):
        core.add_section(*section, 'int8')
    with pytest.raises(ValueError, match="codec: 'int5'"):
        core.add_section(0, 20, 3, 2, 'int5')
    with pytest.raises(ValueError, match=f'dim: 64 is wrong, must be {DIM}.* of several rows'):
        core.add_section(0, 20, 3, 2, 'int8', 64)
    with pytest.raises(ValueError, match='dim: 0'):
        core.add_section(0, 20, 3, 1, 'int8', 0)
    assert core.add_section(0, 20, 3, 2, 'int8') == 0


def test_wrong_memory_settings(made):
    core = made.open(NeuronCore, 10)
    for wrong, message in [
        (lambda: core.pin(7, 1), 'section: 7 is wrong, must be one of the 4'),
        (lambda: core.pin(-1, 1), 'section: -1'),
        (lambda: core.pin(0, -1), 'groups: -1'),
        (lambda: core.pin(0, 100), 'groups: 100'),
        (lambda: core.set_ring(0, 1), 'chunk_groups: 0'),
        (lambda: core.set_ring(2, 0), 'chunks: 0'),
        (lambda: core.set_ring(4, 3), 'slots: the stream ring needs 12 of them, 10 of 10 are left'),
        (lambda: core.set_cache(0), 'slots: 0'),
        (lambda: core.set_cache(11), 'slots: the cache needs 11'),
        (lambda: core.set_stream_order([0]), r'sections: .*set_ring'),
        (lambda: core.gate_up(0, floats(1, DIM), floats(1, 20), 'silu'), 'set_ring'),
        (lambda: core.read_rows(1, np.arange(30), floats(30, DIM)), 'set_cache'),
    ]:
        with pytest.raises(ValueError, match=message):
            wrong()
    core.prefetch(1, np.ones(30, np.uint8))  # no room: nothing happens
    core.pin(0, 3)
    with pytest.raises(ValueError, match=r'section: 0 .*not pinned before'):
        core.pin(0, 1)
    core.set_ring(2, 2)
    core.set_cache(3)
    with pytest.raises(ValueError, match='set_ring'):
        core.set_ring(1, 1)
    with pytest.raises(ValueError, match='set_cache'):
        core.set_cache(1)
    with pytest.raises(ValueError, match='section: 4'):
        core.set_stream_order([0, 4])
    core.set_stream_order([])
    core.gate_up(0, floats(1, DIM), floats(1, 20), 'silu')


def read_only(array):
    array.flags.writeable = False
    return array


# Calls that are right; in each case one argument is not.
RIGHT = {
    'rows_dot': (1, floats(2, DIM), floats(2, 30)),
    'gate_up': (0, floats(2, DIM), floats(2, 20), 'silu'),
    'gate_up_down': (0, 3, floats(2, DIM), floats(2, 20), floats(2, 9), 'silu'),
    'bundled': (2, floats(2, DIM), floats(2, DIM), 'relu', None, 0.1),
    'bundled without gate': (0, floats(2, DIM), floats(2, DIM), 'relu', floats(20)),
    'bundled_sparse': (2, floats(DIM), np.ones(10, np.uint8), floats(DIM), 'relu', None, 0.1),
    'bundled_sparse without gate': (0, floats(DIM), np.ones(20, np.uint8), floats(DIM), 'relu',
                                    floats(20)),
    'prefetch': (1, np.ones(30, np.uint8)),
    'read_rows': (1, np.arange(5), floats(5, DIM)),
}


@pytest.mark.parametrize(('case', 'place', 'wrong', 'message'), [
    ('rows_dot', 0, 0, 'section: 0 .*bundles of 1 rows'), ('rows_dot', 0, 4, 'section: 4'),
    ('rows_dot', 1, floats(2, 41), r'x: float32 \[2, 41\]'),
    ('rows_dot', 1, np.ones((2, DIM)), r'x: float64 \[2, 40\]'),
    ('rows_dot', 1, floats(DIM), 'x: .*S >= 1'), ('rows_dot', 1, floats(0, DIM), 'x: .*S >= 1'),
    ('rows_dot', 1, [1.0], 'x: .*S >= 1'), ('rows_dot', 1, None, 'x: .*S >= 1'),
    ('rows_dot', 1, floats(DIM, 2).T, 'x: .*C-contiguous'),
    ('rows_dot', 2, floats(1, 30), r'out: float32 \[1, 30\]'),
    ('rows_dot', 2, floats(2, 60)[:, ::2], 'out: .*C-contig'),
    ('rows_dot', 2, read_only(floats(2, 30)), 'out: .*writable'),
    ('gate_up', 3, 'elu', "activation: 'elu'"), ('gate_up', 2, floats(2, 21), 'h: '),
    ('gate_up', 0, 1, 'section: 1'), ('gate_up_down', 1, 1, 'down: 1 .*rows of 20 values'),
    ('gate_up_down', 1, 2, 'section: 2 .*bundles of 1 rows'),
    ('gate_up_down', 3, floats(1, 20), 'h: '), ('gate_up_down', 4, floats(2, DIM), 'out: '),
    ('bundled', 0, 1, 'section: 1'),
    ('bundled', 3, '', "activation: ''"),
    ('bundled', 4, floats(10), 'bias: .*None for gated bundles'),
    ('bundled', 5, -1.0, 'threshold: -1'), ('bundled without gate', 4, floats(21), 'bias: '),
    ('bundled without gate', 4, np.ones(20), r'bias: float64 \[20\]'),
    ('bundled_sparse without gate', 5, floats(2, 10), 'bias: '),
    ('bundled_sparse without gate', 0, 1, 'section: 1 .*bundles of 2 or 3 rows'),
    ('bundled_sparse', 6, float('nan'), 'threshold: nan'),
    ('bundled_sparse', 2, np.ones(10, np.int8), r'active: int8 \[10\].*uint8'),
    ('bundled_sparse', 2, np.ones(10, bool), 'active: bool'),
    ('bundled_sparse', 1, floats(1, DIM), 'x: '), ('bundled_sparse', 3, floats(DIM - 1), 'out: '),
    ('bundled_sparse', 4, 'tanh', 'activation'), ('prefetch', 1, np.ones(31, np.uint8), 'wanted: '),
    ('prefetch', 0, 9, 'section: 9'), ('read_rows', 1, np.array([0, 1, 2, 3, 30]), 'ids: '),
    ('read_rows', 1, np.array([0, 1, 2, 3, -1]), 'ids: '),
    ('read_rows', 1, np.arange(5, dtype=np.int32), 'ids: int32'),
    ('read_rows', 1, np.zeros((1, 5), np.int64), 'ids: '),
    ('read_rows', 1, [1, 2, 3, 4, 5], 'ids: '),
    ('read_rows', 2, floats(4, DIM), 'out: '),
])
def test_wrong_compute_arguments(made, case, place, wrong, message):
    core, call = Setting(cache=3).open(made, NeuronCore), case.partition(' ')[0]
    arguments = [argument.copy() if isinstance(argument, np.ndarray) else argument
                 for argument in RIGHT[case]]
    getattr(core, call)(*arguments)
    before = core.stats()
    arguments[place] = wrong
    with pytest.raises(ValueError, match=message):
        getattr(core, call)(*arguments)
    after = core.stats()
    assert (after['hits'], after['misses']) == (before['hits'], before['misses'])


def test_closing(made):
    threads, files = len(os.listdir('/proc/self/task')), len(os.listdir('/proc/self/fd'))
    core = Setting(cache=3, order=[0, 1, 2]).open(made, NeuronCore)
    core.prefetch(1, np.ones(30, np.uint8))
    counted = core.stats()['misses']
    core.close()
    core.close()
    assert len(os.listdir('/proc/self/task')) == threads
    assert len(os.listdir('/proc/self/fd')) == files
    assert core.stats()['misses'] == counted
    assert isinstance(core.direct, bool)
    assert isinstance(core.locked, bool)
    for call in (lambda: core.add_section(0, 1, 1, 1, 'int8'), lambda: core.pin(0, 1),
                 lambda: core.set_ring(1, 1), lambda: core.set_cache(1),
                 lambda: core.set_stream_order([]),
                 lambda: core.gate_up(0, floats(1, DIM), floats(1, 20), 'silu'),
                 lambda: core.prefetch(1, np.ones(30, np.uint8)),
                 lambda: core.read_rows(1, np.arange(2), floats(2, DIM))):
        with pytest.raises(RuntimeError, match='closed'):
            call()


def test_threads_take_turns(made):
    """Calls from several threads, counters read meanwhile, are as good as one after another."""
    core = Setting({0: 2}, ring=(2, 2), cache=4, order=[0]).open(made, NeuronCore)
    rng = np.random.default_rng(2)
    x = rng.standard_normal((3, DIM)).astype(np.float32)
    ids = rng.integers(0, 30, 8)
    h, rows = floats(3, 20), floats(8, DIM)
    core.gate_up(0, x, h, 'silu')
    core.read_rows(1, ids, rows)
    differing = []

    def dense():
        for _ in range(60):
            mine = floats(3, 20)
            core.gate_up(0, x, mine, 'silu')
            if not np.array_equal(mine, h):
                differing.append('dense')

    def sparse():
        for _ in range(60):
            mine = floats(8, DIM)
            core.prefetch(1, np.ones(30, np.uint8))
            core.read_rows(1, ids, mine)
            if not np.array_equal(mine, rows):
                differing.append('sparse')

    def watch():
        last = 0
        while any(thread.is_alive() for thread in workers):
            now = core.stats()['crc_checked']
            if now < last:
                differing.append('stats')
            last = now

    workers = [threading.Thread(target=work) for work in (dense, sparse, dense)]
    watcher = threading.Thread(target=watch)
    for thread in [*workers, watcher]:
        thread.start()
    for thread in [*workers, watcher]:
        thread.join(timeout=60)
        assert not thread.is_alive()
    assert differing == []
