"""The tensor files against the safetensors library, in both directions, and hostile headers."""

import json
from pathlib import Path
import tempfile

from hypothesis import given, settings
from hypothesis import strategies as st
import numpy as np
import pytest
from refusals import assert_error
from safetensors.numpy import load_file, save_file

from flash_llm_ros.store.errors import ErrorCode, FlashLlmError, ReadFailedError
from flash_llm_ros.store.tensor_file import TensorFile, TensorFileWriter

DTYPES = (np.float32, np.float16, np.uint8, np.int8)
TENSORS = st.dictionaries(
    st.text(min_size=1, max_size=12).filter(lambda name: name != '__metadata__'),
    st.tuples(st.sampled_from(DTYPES), st.lists(st.integers(0, 5), max_size=3).map(tuple)),
    min_size=1, max_size=6)


def filled(layout: dict[str, tuple[type, tuple[int, ...]]]) -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    return {name: random.integers(-99, 99, shape).astype(dtype)
            for name, (dtype, shape) in layout.items()}


def assert_equal(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype and found[name].shape == tensor.shape
        np.testing.assert_array_equal(found[name], tensor)


@settings(max_examples=30, deadline=None)
@given(layout=TENSORS)
def test_written_for_the_library(layout: dict[str, tuple[type, tuple[int, ...]]]) -> None:
    tensors = filled(layout)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / 'x.safetensors'
        writer = TensorFileWriter(path, layout)
        for name, tensor in tensors.items():
            writer.write(name, tensor)
        writer.close()
        assert_equal(load_file(path), tensors)
        content = path.read_bytes()
        for name, (offset, size) in writer.offsets.items():
            assert content[offset:offset + size] == tensors[name].tobytes()


@settings(max_examples=30, deadline=None)
@given(layout=TENSORS)
def test_read_from_the_library(layout: dict[str, tuple[type, tuple[int, ...]]]) -> None:
    tensors = filled(layout)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / 'x.safetensors'
        save_file(tensors, path, metadata={'format': 'np'})
        file = TensorFile(path)
        assert_equal({name: file.read(name) for name in file.names()}, tensors)
        assert all(file.nbytes(name) == tensor.nbytes for name, tensor in tensors.items())
        file.close()


def test_data_starts_aligned(tmp_path: Path) -> None:
    for length in range(1, 70, 7):
        writer = TensorFileWriter(tmp_path / 'x', {'n' * length: (np.uint8, (1,))})
        assert writer.data_start % 64 == 0
        writer.write('n' * length, np.ones(1, np.uint8))
        writer.close()


def test_read_into_memory_of_the_callers(tmp_path: Path) -> None:
    save_file({'a': np.arange(6, dtype=np.float32).reshape(2, 3)}, tmp_path / 'x')
    memory = bytearray(b'\xaa' * 64)
    file = TensorFile(tmp_path / 'x')
    array = file.read_into('a', memoryview(memory))
    file.close()
    np.testing.assert_array_equal(array, [[0, 1, 2], [3, 4, 5]])
    assert bytes(memory[:24]) == array.tobytes() and memory[24:] == b'\xaa' * 40


@pytest.mark.parametrize(('name', 'tensor'), [
    ('b', np.zeros(3, np.float32)), ('a', np.zeros(4, np.float32)), ('a', np.zeros(3, np.float16)),
])
def test_writing_what_was_not_declared(tmp_path: Path, name: str, tensor: np.ndarray) -> None:
    writer = TensorFileWriter(tmp_path / 'x', {'a': (np.float32, (3,)), 'b': (np.float32, (3,))})
    with pytest.raises(ValueError, match='declared'):
        writer.write(name, tensor)


def test_closing_too_early(tmp_path: Path) -> None:
    writer = TensorFileWriter(tmp_path / 'x', {'a': (np.float32, (3,))})
    with pytest.raises(ValueError, match='a was declared but not written'):
        writer.close()


def entry(dtype: object = 'U8', shape: object = (4,),
          offsets: object = (0, 4)) -> dict[str, object]:
    return {'dtype': dtype, 'shape': shape, 'data_offsets': offsets}


@pytest.mark.parametrize('header', [
    '', '[]', '{', 'null', '5', '"a"', b'\xff\xfe', '[' * 50_000, '{"a": 5}', '{"a": {}}',
    {'a': entry('F99')}, {'a': entry(['U8'])}, {'a': entry('BF16')},
    {'a': entry(shape=(5,))}, {'a': entry(shape=(-2, -2))}, {'a': entry(shape='4')},
    {'a': entry(shape=(4.0,))}, {'a': entry(shape=(True, 4))}, {'a': entry(shape=4)},
    {'a': entry(shape=(2 ** 32, 2 ** 32), offsets=(0, 0))},
    {'a': entry(offsets=(-4, 0))}, {'a': entry(offsets=(4, 0))},
    {'a': entry(offsets=(0, 2 ** 70))},
    {'a': entry(offsets=(0,))}, {'a': entry(offsets=('0', '4'))}, {'a': entry(offsets=(0.0, 4.0))},
    {'a': entry(offsets=None)}, {'a': entry(offsets=(4, 8))},
    {'a': entry(shape=(3,), offsets=(0, 3))},
    {'a': entry(), 'b': entry()}, {'a': entry(), 'b': entry(offsets=(2, 6))},
    {'a': entry(shape=(1,), offsets=(0, 1)), 'b': entry(shape=(2,), offsets=(2, 4))},
], ids=lambda header: str(header)[:40])
def test_hostile_header(tmp_path: Path, header: object) -> None:
    """Four bytes of data follow; only [0, 4) as one tensor, or tiled, would be right."""
    text = header if isinstance(header, bytes | str) else json.dumps(header)
    data = text if isinstance(text, bytes) else text.encode()
    (tmp_path / 'x').write_bytes(len(data).to_bytes(8, 'little') + data + b'data')
    with assert_error(ErrorCode.STORE_CORRUPT) as error:
        TensorFile(tmp_path / 'x')
    assert str(tmp_path / 'x') in str(error.value)


@pytest.mark.parametrize('content', [
    b'', b'\x02', b'\0' * 8, b'\xff' * 8 + b'{}', (2 ** 40).to_bytes(8, 'little') + b'{}',
    (3).to_bytes(8, 'little') + b'{}',
])
def test_hostile_length(tmp_path: Path, content: bytes) -> None:
    (tmp_path / 'x').write_bytes(content)
    with assert_error(ErrorCode.STORE_CORRUPT):
        TensorFile(tmp_path / 'x')


def test_no_descriptor_is_left_after_a_refusal(tmp_path: Path) -> None:
    (tmp_path / 'x').write_bytes(b'nothing')
    before = len(list(Path('/proc/self/fd').iterdir()))
    for _ in range(5):
        with pytest.raises(FlashLlmError):
            TensorFile(tmp_path / 'x')
    assert len(list(Path('/proc/self/fd').iterdir())) == before


def test_file_that_shrinks_after_opening(tmp_path: Path) -> None:
    save_file({'a': np.arange(1000, dtype=np.float32)}, tmp_path / 'x')
    file = TensorFile(tmp_path / 'x')
    with (tmp_path / 'x').open('r+b') as raw:
        raw.truncate(2000)
    with pytest.raises(ReadFailedError, match='truncated'):
        file.read('a')
    file.close()


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ReadFailedError, match='No such file'):
        TensorFile(tmp_path / 'x')
