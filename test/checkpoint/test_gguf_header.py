"""Headers of GGUF files: hostile counts are refused by their offset, before they are believed."""

from pathlib import Path
import struct

from gguf import GGUFReader
import pytest

from flash_llm_ros.checkpoint.errors import CheckpointError
from flash_llm_ros.checkpoint.gguf_header import read_header
from flash_llm_ros.checkpoint.open import open_checkpoint


def text(value: bytes, length: int | None = None) -> bytes:
    return struct.pack('<Q', len(value) if length is None else length) + value


def header(*fields: bytes, tensors: int = 0, count: int | None = None) -> bytes:
    return b'GGUF' + struct.pack('<IQQ', 3, tensors, len(fields) if count is None else count
                                 ) + b''.join(fields)


def array(kind: int, count: int, content: bytes = b'', name: bytes = b'a') -> bytes:
    return text(name) + struct.pack('<IIQ', 9, kind, count) + content


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
    'many arrays': (header(*(array(7, 1 << 20, bytes(1 << 20), name) for name in (
        b'a', b'b', b'c', b'd', b'e'))), 'at most 0 may be there'),
    'a field twice': (header(array(7, 0), array(7, 0)), 'field a is there twice'),
    'a tensor twice': (header(tensors=2) + 2 * (text(b't') + struct.pack('<IQIQ', 1, 4, 0, 0)),
                       'tensor t is there twice'),
    'tensors that overlap': (
        header(tensors=2) + text(b't') + struct.pack('<IQIQ', 1, 4, 0, 0) + text(b'u')
        + struct.pack('<IQIQ', 1, 4, 0, 8) + bytes(99),
        'tensor t ends at byte 112, behind the beginning of tensor u'),
    'a type of tensor': (header(tensors=1) + text(b't') + struct.pack('<IQIQ', 1, 4, 99, 0),
                         'tensor t is of type 99'),
    'no whole blocks': (header(tensors=1) + text(b't') + struct.pack('<IQQIQ', 2, 40, 2, 2, 0),
                        'tensor t has rows of 40 values; Q4_0 has blocks of 32'),
    'alignment': (header(text(b'general.alignment') + struct.pack('<II', 4, 24)),
                  'general.alignment is 24'),
    'a text that is none': (header(text(b'a') + struct.pack('<I', 8) + text(b'\xff')),
                            'byte 37: a text is not UTF-8'),
    'a version': (b'GGUF' + struct.pack('<IQQ', 1, 0, 0), 'its version is 1'),
    'big-endian': (b'GGUF' + struct.pack('>IQQ', 3, 0, 0), '`gguf-convert-endian FILE little`'),
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
    'nothing': (b'', 'is empty'),
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
    """A file that is cut off is told with the byte at which it ends."""
    path = tmp_path / 'model.gguf'
    whole = header(text(b'a') + struct.pack('<If', 6, 0.5),
                   array(8, 2, text(b'x') + text(b'yz'), b'b'),
                   array(4, 3, struct.pack('<III', 1, 2, 3), b'c'), tensors=1)
    whole += text(b't') + struct.pack('<IQIQ', 1, 4, 0, 0)
    whole += bytes(-len(whole) % 32 + 16)
    path.write_bytes(whole)
    assert read_header(path).fields == {'a': 0.5, 'b': ['x', 'yz'], 'c': [1, 2, 3]}
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=f'the file ends at {length}\\b'):
            read_header(path)


def test_as_the_library_reads_it(real_gguf: Path) -> None:
    """Metadata, kinds, shapes and places of a real file's tensors."""
    found, reference = read_header(real_gguf), GGUFReader(real_gguf)
    own = ('GGUF.version', 'GGUF.tensor_count', 'GGUF.kv_count')
    assert found.fields == {name: field.contents() for name, field in reference.fields.items()
                            if name not in own}
    assert {name: (place.kind, place.shape, place.start, place.end - place.start)
            for name, place in found.tensors.items()} == {
        tensor.name: (tensor.tensor_type, tuple(tensor.shape[::-1].tolist()), tensor.data_offset,
                      tensor.n_bytes) for tensor in reference.tensors}
