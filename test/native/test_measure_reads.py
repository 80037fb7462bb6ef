"""The measured rate of reads: what was read is what is counted; wrong arguments are named."""

import os

from core_cases import needs_uring
import pytest

from flash_llm_ros import _native
from flash_llm_ros.store.errors import ReadFailedError


@pytest.fixture
def file(tmp_path):
    path = tmp_path / 'any.bin'
    path.write_bytes(os.urandom(1 << 20))
    return path


def bytes_read_by_this_process():
    """As the kernel counts them at the block layer; direct reads only while nothing else runs."""
    with open('/proc/self/io') as lines:
        return int(next(line for line in lines if line.startswith('read_bytes')).split()[1])


@pytest.mark.parametrize('reader', ['threads', pytest.param('io_uring', marks=needs_uring)])
@pytest.mark.parametrize('pattern', ['random', 'sequential'])
@pytest.mark.parametrize(('size', 'in_flight'), [(512, 1), (4096, 8), (65536, 3), (1 << 20, 2)])
def test_what_is_counted_was_read(file, reader, pattern, size, in_flight):
    before = bytes_read_by_this_process()
    found = _native.measure_reads(file, size, in_flight, 0.05, pattern, reader)
    from_device = bytes_read_by_this_process() - before
    assert found['reads'] >= in_flight
    assert found['bytes'] == found['reads'] * size
    assert found['seconds'] >= 0.05
    assert found['reader'] == reader
    if found['direct']:
        # And those that try whether direct I/O and io_uring work.
        tried = 2 if reader == 'io_uring' else 1
        # Besides, the kernel may bring in pages of programs meanwhile.
        assert 0 <= from_device - (found['bytes'] + tried * size) < 1 << 18


def test_a_sequential_pass_goes_round(file):
    """More reads than the file has places are no error."""
    found = _native.measure_reads(file, 1 << 19, 4, 0.05, 'sequential')
    assert found['reads'] > 2


@pytest.mark.parametrize(('changed', 'sentence'), [
    ({'bytes': 100}, 'bytes: 100'), ({'in_flight': 0}, 'in_flight: 0'),
    ({'seconds': 0}, 'seconds: 0'), ({'pattern': 'zigzag'}, "pattern: 'zigzag'"),
    ({'reader': 'mmap'}, "reader: 'mmap'"), ({'bytes': 1 << 21}, 'path: a file shorter'),
])
def test_wrong_arguments(file, changed, sentence):
    arguments = {'path': file, 'bytes': 4096, 'in_flight': 1, 'seconds': 0.01,
                 'pattern': 'random', **changed}
    with pytest.raises(ValueError, match=sentence):
        _native.measure_reads(**arguments)


def test_a_missing_file(tmp_path):
    with pytest.raises(ReadFailedError, match='cannot be opened: No such file'):
        _native.measure_reads(tmp_path / 'missing.bin', 4096, 1, 0.01, 'random')
