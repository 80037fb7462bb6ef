"""Which reader runs, and that it leaves nothing behind, in the page cache neither."""

import ctypes
import mmap
import os
from pathlib import Path
import shutil
import subprocess
import sys

from core_cases import Setting, core_with, each_core, needs_uring
from core_oracle import write_neuron_file
import numpy as np
import pytest

from flash_llm_ros.engine import Engine, EngineConfig

PARTS = [(35, 0, 2), (400, 0, 1)]

# A container's usual refusal: a seccomp filter that answers io_uring_setup (425) with EPERM.
WITHOUT_URING = """
import ctypes, struct, sys
from flash_llm_ros.engine import Engine, EngineConfig
from flash_llm_ros.store.errors import FlashLlmError

class Program(ctypes.Structure):
    _fields_ = [('length', ctypes.c_ushort), ('code', ctypes.c_char_p)]

code = b''.join(struct.pack('HBBI', *line) for line in [
    (0x20, 0, 0, 0),                # load the number of the system call
    (0x15, 0, 1, 425),              # another than io_uring_setup: skip a line
    (0x06, 0, 0, 0x00050000 | 1),   # EPERM
    (0x06, 0, 0, 0x7fff0000),       # allowed
])
libc = ctypes.CDLL(None, use_errno=True)
assert libc.prctl(38, 1, 0, 0, 0) == 0                              # PR_SET_NO_NEW_PRIVS
assert libc.prctl(22, 2, ctypes.byref(Program(len(code) // 8, code))) == 0   # PR_SET_SECCOMP
for reader in ('auto', 'io_uring'):
    try:
        lines = []
        engine = Engine.open(EngineConfig(sys.argv[1], 32_000_000, reader=reader), lines.append)
        print(engine.model.window.core.reader, [line for line in lines if 'reading' in line])
        engine.close()
    except FlashLlmError as error:
        print(error.code.name, error)
"""


def floats(*shape):
    return np.ones(shape, np.float32)


@pytest.fixture
def made(tmp_path):
    return write_neuron_file(tmp_path / 'neurons.bin', np.random.default_rng(1), 'int8', 64, 1024,
                             PARTS)


@needs_uring
def test_io_uring_runs_where_it_is_to_be_had(made):
    for reader in ('io_uring', 'auto'):
        assert made.open(core_with(reader), 4).reader == 'io_uring'


def test_a_container_without_io_uring(int8_store):
    """Threads run in its place, and who insists is told."""
    done = subprocess.run([sys.executable, '-c', WITHOUT_URING, str(int8_store)], text=True,
                          env={**os.environ, 'PYTHONPATH': os.pathsep.join(sys.path)},
                          capture_output=True, timeout=100)
    assert done.returncode == 0, done.stderr
    auto, insisting = done.stdout.splitlines()
    assert auto == "threads ['reading with threads, up to 32 reads at once']"
    assert insisting == (
        "INVALID_PARAMETER reader is 'io_uring', which is not to be had here (io_uring_setup: "
        "Operation not permitted); it must be 'auto' or 'threads'.")


@each_core
@pytest.mark.parametrize('reads_in_flight', [1, 3, 256])
def test_closing_while_reads_are_under_way(made, core_class, reads_in_flight):
    """Whatever is under way ends first; descriptors and threads are given back."""
    def held():
        return (len(os.listdir('/proc/self/fd')),
                sum((Path('/proc/self/task') / task / 'comm').read_text() == 'flash_read\n'
                    for task in os.listdir('/proc/self/task')))

    wanted = np.ones(400, np.uint8)
    wanted[::7] = 0
    before = held()
    for _ in range(40):
        core = Setting(ring=(2, 6), cache=60, order=[0, 1],
                       options={'reads_in_flight': reads_in_flight}).open(made, core_class)
        core.prefetch(1, wanted)
        core.close()
    assert held() == before


@each_core
@pytest.mark.parametrize('reads_in_flight', [1, 2, 32])
def test_more_requests_than_reads_in_flight(made, core_class, reads_in_flight):
    core = Setting(cache=80, options={'reads_in_flight': reads_in_flight}).open(made, core_class)
    ids = np.arange(0, 400, 25)     # every other group or less: a request each
    part = made.sections[1]
    groups = ids // part.bundles_per_group
    out = np.zeros((len(ids), 64), np.float32)
    core.read_rows(1, ids, out)
    assert core.stats()['flash_reads'] == 1 + np.count_nonzero(np.diff(groups) > 1)
    assert np.array_equal(out, part.weights[ids, 0].astype(np.float32))


def test_the_engine_says_how_it_reads(int8_store):
    lines = []
    engine = Engine.open(EngineConfig(int8_store, 32_000_000, reader='threads', reads_in_flight=5),
                         lines.append)
    assert engine.reader == 'threads, up to 5 reads at once'
    assert f'reading with {engine.reader}' in lines
    engine.close()


def pages_cached(path):
    size = path.stat().st_size
    with open(path, 'rb') as file:
        mapped = mmap.mmap(file.fileno(), size, prot=mmap.PROT_READ)
    array = np.frombuffer(mapped, np.uint8)
    pages = -(-size // mmap.PAGESIZE)
    states = (ctypes.c_ubyte * pages)()
    libc = ctypes.CDLL(None, use_errno=True)
    failed = libc.mincore(ctypes.c_void_p(array.ctypes.data), ctypes.c_size_t(size), states)
    del array
    mapped.close()
    assert failed == 0, os.strerror(ctypes.get_errno())
    return sum(state & 1 for state in states)


@each_core
@pytest.mark.parametrize('direct_io', [True, False])
def test_the_page_cache_stays_empty(tmp_path, core_class, direct_io):
    """Groups of whole pages, so that a page dropped after a read is not another group's."""
    made = write_neuron_file(tmp_path / 'neurons.bin', np.random.default_rng(1), 'int8', 600, 4096,
                             [(40, 0, 2), (60, 0, 1)])
    with open(made.path, 'rb') as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    if pages_cached(made.path):
        pytest.skip('the file system keeps its pages (tmpfs)')
    core = Setting({0: 3}, ring=(2, 2), cache=4,
                   options={'direct_io': direct_io}).open(made, core_class)
    if direct_io and not core.direct:
        pytest.skip('the file system has no direct I/O')
    core.gate_up(0, floats(1, 600), floats(1, 40), 'silu')
    core.read_rows(1, np.arange(60), floats(60, 600))
    assert core.direct == direct_io
    assert pages_cached(made.path) == 0


@pytest.fixture
def small_shm():
    folder = Path('/dev/shm', f'flash_llm_ros_test_{os.getpid()}')
    try:
        folder.mkdir()
    except OSError:
        pytest.skip('no /dev/shm')
    yield folder
    shutil.rmtree(folder)


@each_core
def test_a_file_system_in_memory(small_shm, core_class):
    """tmpfs has no direct I/O in older kernels: the core reads buffered and says so."""
    made = write_neuron_file(small_shm / 'neurons.bin', np.random.default_rng(1), 'int8', 64,
                             1024, PARTS)
    core = Setting({0: 2}, ring=(2, 2), cache=3).open(made, core_class)
    try:
        os.close(os.open(made.path, os.O_RDONLY | os.O_DIRECT))
    except OSError:
        assert not core.direct
    out = floats(400, 64)
    core.read_rows(1, np.arange(400), out)
    assert np.array_equal(out, made.sections[1].weights[:, 0].astype(np.float32))
    core.close()
