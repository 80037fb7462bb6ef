"""The native checksum, by instruction and by table, against published values and a plain loop."""

from core_oracle import plain_crc32c
import numpy as np
import pytest
from test_codec import KNOWN


@pytest.fixture(params=[False, True], ids=['instruction', 'table'])
def crc32c(request):
    from flash_llm_ros import _native
    return lambda data: _native.crc32c(data, by_table=request.param)


@pytest.mark.parametrize(('data', 'value'), KNOWN)
def test_known_values(crc32c, data, value):
    assert crc32c(data) == value


def test_every_length_and_alignment(crc32c):
    """The streams are 128 and 1024 bytes long and go three abreast: lengths around all of these."""
    data = np.random.default_rng(1).integers(0, 256, 7000, dtype=np.uint8)
    lengths = [*range(40), *range(376, 400), *range(760, 780), *range(3060, 3090), 6140, 6900]
    for index, length in enumerate(lengths):
        start = index % 19
        part = data[start:start + length]
        assert crc32c(part) == plain_crc32c(part.tobytes()), length


def test_other_buffers(crc32c):
    numbers = np.arange(50, dtype=np.float32).reshape(5, 10)
    assert crc32c(numbers) == plain_crc32c(numbers.tobytes())
    assert crc32c(memoryview(b'123456789')) == 0xE3069283
    with pytest.raises(ValueError, match='contiguous'):
        crc32c(numbers[:, ::2])
    with pytest.raises(TypeError):
        crc32c('123456789')
