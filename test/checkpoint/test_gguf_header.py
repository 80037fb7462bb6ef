"""Headers of GGUF files: hostile counts are refused by their offset, before they are believed."""

from collections.abc import Callable
from pathlib import Path
import struct

from gguf import GGUFEndian, GGUFWriter
from gguf_checkpoint import write_gguf
import numpy as np
import pytest
from tiny_checkpoint import write_checkpoint

from flash_llm_ros.checkpoint.errors import CheckpointError
from flash_llm_ros.checkpoint.gguf_header import check_header
from flash_llm_ros.checkpoint.open import open_checkpoint


def text(value: bytes, length: int | None = None) -> bytes:
    return struct.pack('<Q', len(value) if length is None else length) + value


def header(*fields: bytes, tensors: int = 0, count: int | None = None) -> bytes:
    return b'GGUF' + struct.pack('<IQQ', 3, tensors, len(fields) if count is None else count
                                 ) + b''.join(fields)


def array(kind: int, count: int, content: bytes = b'') -> bytes:
    return text(b'a') + struct.pack('<IIQ', 9, kind, count) + content


HUGE = 2 ** 60
HOSTILE = {
    'fields': (header(count=HUGE), 'byte 16: 1152921504606846976 fields; at most 65536'),
    'tensors': (header(tensors=HUGE), 'byte 8: 1152921504606846976 tensors; at most 65536'),
    'bytes': (header(array(0, HUGE)), 'byte 41: 1152921504606846976 entries of arrays'),
    'bytes that would fit in no file': (header(array(0, 4_000_000)),
                                        'byte 49: an array of 4000000 entries takes 4000000 bytes'),
    'numbers': (header(array(12, 4_000_000, bytes(99))), 'takes 32000000 bytes, the file ends at'),
    'texts': (header(array(8, HUGE)), 'entries of arrays; at most 4194304'),
    'texts that end': (header(array(8, 4_000_000, text(b'x') * 9)),
                       'a text in an array is cut off'),
    'many arrays': (header(*[array(7, 1 << 20, bytes(1 << 20))] * 5), 'at most 0 may be there'),
    'arrays of arrays': (header(array(9, 3, bytes(99))), 'byte 37: arrays of type 9 are unknown'),
    'a type': (header(text(b'a') + struct.pack('<I', 77)), 'byte 33: fields of type 77'),
    'a name': (header(text(b'a', HUGE)), 'byte 24: the name of a field is 1152921504606846976'),
    'a text': (header(text(b'a') + struct.pack('<I', 8) + text(b'b', HUGE)), 'byte 37: a text is'),
    'a token': (header(array(8, 1, text(b'x' * 5000))), 'a text in an array is 5000 bytes long'),
    'dimensions': (header(tensors=1) + text(b't') + struct.pack('<I', 2 ** 31),
                   'byte 33: 2147483648 dimensions'),
    'a tensor': (header(tensors=1) + text(b't') + struct.pack('<IQ', 1, 9),
                 'byte 37: a tensor takes 20 bytes'),
    'magic': (b'GGML' + bytes(99), "byte 0: it must begin with 'GGUF'"),
    'nothing': (b'', 'byte 0: the magic is cut off, the file ends at 0'),
}


@pytest.mark.parametrize('name', HOSTILE)
def test_hostile_counts(tmp_path: Path, name: str) -> None:
    content, sentence = HOSTILE[name]
    path = tmp_path / 'model.gguf'
    path.write_bytes(content)
    with pytest.raises(CheckpointError) as error:
        open_checkpoint(path)
    assert str(path) in str(error.value) and sentence in str(error.value)


def test_cut_anywhere(tmp_path: Path) -> None:
    """A header that is cut off is told with the byte at which it ends."""
    path = tmp_path / 'model.gguf'
    whole = header(text(b'a') + struct.pack('<If', 6, 0.5), array(8, 2, text(b'x') + text(b'yz')),
                   array(4, 3, bytes(12)), tensors=1)
    whole += text(b't') + struct.pack('<IQIQ', 1, 4, 0, 0)
    path.write_bytes(whole)
    check_header(path)
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=f'^byte \\d+: .*the file ends at {length}$'):
            check_header(path)


@pytest.mark.parametrize('write', [
    lambda path, folder: write_gguf(write_checkpoint(folder), path),
    lambda path, folder: big_endian(path)])
def test_good_ones(tmp_path: Path, write: Callable[[Path, Path], object]) -> None:
    write(tmp_path / 'model.gguf', tmp_path / 'checkpoint')
    check_header(tmp_path / 'model.gguf')


def big_endian(path: Path) -> None:
    writer = GGUFWriter(path, 'llama', endianess=GGUFEndian.BIG)
    writer.add_array('numbers', [1, 2, 3])
    writer.add_array('texts', ['a', 'bc'])
    writer.add_float32('value', 1.5)
    writer.add_tensor('t', np.ones((2, 3), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
