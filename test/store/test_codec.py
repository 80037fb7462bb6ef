"""Row codecs against value-by-value references, and the checksum against the textbook's loop."""

from core_oracle import int4_values, plain_crc32c
import gguf
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
import numpy as np
import pytest

from flash_llm_ros.store.checksum import crc32c
from flash_llm_ros.store.codec import row_codec


def encoded_int8_row(row):
    """One row by the definition, with Python's own numbers."""
    quants, scales = [], []
    values = [float(value) for value in row] + [0.0] * (-len(row) % 32)
    for start in range(0, len(values), 32):
        block = values[start:start + 32]
        largest = max(abs(value) for value in block)
        scale = float(np.float16(np.float32(largest) / np.float32(127)))
        scales.append(scale)
        for value in block:
            # float32 division, then the nearest whole number, ties to even
            quotient = float(np.float32(value) / np.float32(scale)) if scale else 0.0
            quants.append(max(-127, min(127, round(quotient))))
    return np.array(quants, np.int8).tobytes() + np.array(scales, '<f2').tobytes()


@given(data=st.data(), dim=st.integers(1, 100), rows=st.integers(0, 3))
@settings(max_examples=200, deadline=None)
def test_int8_rows_follow_the_definition(data, dim, rows):
    weights = data.draw(hnp.arrays(np.float32, (rows, dim), elements=st.floats(
        -1e6, 1e6, width=32)))
    codec = row_codec('int8', dim)
    encoded = codec.encode(weights)
    assert encoded.dtype == np.uint8
    assert encoded.shape == (rows, codec.row_bytes)
    assert codec.row_bytes == -(-dim // 32) * 34
    assert [row.tobytes() for row in encoded] == [encoded_int8_row(row) for row in weights]

    decoded = codec.decode(encoded)
    width = -(-dim // 32) * 32
    for row, raw in zip(decoded, encoded, strict=True):
        quants = raw[:width].view(np.int8).astype(float)
        scales = np.frombuffer(raw[width:].tobytes(), '<f2').astype(float)
        assert row.dtype == np.float32
        assert row.tolist() == (quants * np.repeat(scales, 32))[:dim].tolist()


@pytest.mark.parametrize(('name', 'scales'), [('int8', slice(64, 66)), ('int4', slice(32, 33))])
def test_zero_blocks_stay_zero(name, scales):
    codec = row_codec(name, 64)
    weights = np.zeros((1, 64), np.float32)
    weights[0, 40] = 3
    encoded = codec.encode(weights)
    assert not encoded[0, scales].any()
    assert not codec.decode(encoded)[0, :32].any()
    tiny = np.full((1, 64), 1e-12, np.float32)  # a scale that rounds to zero
    for small in (tiny, -tiny):
        encoded = codec.encode(small)
        assert not codec.decode(encoded).any()
        assert not encoded[0, scales.start:].any()


def int4_errors(weights):
    """The squared error of each block of 32, float64 [rows * blocks]."""
    codec = row_codec('int4', weights.shape[1])
    missed = codec.decode(codec.encode(weights)).astype(np.float64) - weights
    return (missed.reshape(-1, 32) ** 2).sum(axis=1)


@given(data=st.data(), dim=st.integers(1, 100), rows=st.integers(0, 3))
@settings(max_examples=200, deadline=None)
def test_int4_rows_follow_the_definition(data, dim, rows):
    weights = data.draw(hnp.arrays(np.float32, (rows, dim), elements=st.one_of(
        st.floats(-5e4, 5e4, width=32), st.floats(-1, 1, width=32))))
    codec, blocks = row_codec('int4', dim), -(-dim // 32)
    assert codec.row_bytes == 18 * blocks + 4
    encoded = codec.encode(weights)
    assert encoded.dtype == np.uint8
    assert encoded.shape == (rows, codec.row_bytes)
    decoded = codec.decode(encoded)
    assert decoded.dtype == np.float32
    for weight, raw, row in zip(weights, encoded, decoded, strict=True):
        assert row.tolist() == int4_values(raw.tobytes(), dim).tolist()
        tops = np.frombuffer(raw[-4:].tobytes(), '<f2').astype(float)
        # the codes of scale and offset may move every value of a line
        moved = 8 * tops[0] / 512 + tops[1] / 256
        for start in range(0, dim, 32):
            block = weight[start:start + 32].astype(float)
            scale = raw[16 * blocks + start // 32] * tops[0] / 256
            missed = np.abs(row[start:start + 32] - block)
            # 17 steps for a block of 15 cut its furthest values by one; a scale that fp16 does not
            # reach is 0, and 8 of its steps are up to 8 * 2**-25
            assert (missed <= 1.5 * scale + moved + 1e-6 * np.abs(block) + 2**-21).all()


def test_any_bytes_decode_as_int4_rows_by_the_definition():
    data = np.random.default_rng(7).integers(0, 256, (200, 18 * 3 + 4)).astype(np.uint8)
    data[:, -4:] = np.random.default_rng(8).standard_normal((200, 2)).astype('<f2').view(np.uint8)
    decoded = row_codec('int4', 70).decode(data)
    assert [row.tolist() for row in decoded] == [int4_values(row.tobytes(), 70).tolist()
                                                 for row in data]


def test_int4_errors_make_up_for_each_other_as_the_optimal_brain_surgeon_has_them():
    """GPTQ's own form: what is rounded leaves the inverse of the inputs' covariance (float64)."""
    rng, dim, count = np.random.default_rng(5), 72, 300     # a last block of eight values
    inputs = rng.standard_normal((500, 12)) @ rng.standard_normal((12, dim))
    inputs += 0.3 * rng.standard_normal(inputs.shape)
    covariance = inputs.T @ inputs
    root = np.linalg.cholesky(covariance[::-1, ::-1])[::-1, ::-1].astype(np.float32)
    rows, codec = rng.standard_normal((count, dim)).astype(np.float32), row_codec('int4', dim)
    encoded = codec.encode(rows, root)
    found = codec.decode(encoded)
    tops = encoded[:, -4:].copy().view('<f2').astype(float)
    scales = encoded[:, 48:51] * tops[:, :1] / 256
    offsets = encoded[:, 51:54].view(np.int8) * tops[:, 1:] / 128
    expected = rows.astype(float)
    for value in range(dim):
        inverse = np.linalg.inv(covariance[value:, value:])
        scale, offset = scales[:, value // 32], offsets[:, value // 32]
        aim = expected[:, value].copy()
        expected[:, value] = np.rint((aim - offset) / scale).clip(-8, 7) * scale + offset
        missed = aim - expected[:, value]
        expected[:, value + 1:] -= missed[:, None] * inverse[0, 1:] / inverse[0, 0]
    same = np.isclose(found, expected, atol=1e-4).all(axis=1)
    assert same.mean() > 0.95           # float32 rounds a value in the middle the other way
    missed = ((found - rows) @ inputs.T).std(), ((codec.decode(codec.encode(rows)) - rows)
                                                  @ inputs.T).std()
    assert missed[0] < 0.6 * missed[1]


@pytest.mark.parametrize('least', [0, 1])       # the lowest value that a source's block uses
def test_int4_keeps_sources_of_4_bits_with_a_minimum(least):
    """As GGUF's Q4_1 and Q4_K: a scale and a minimum per block, not all 16 steps used."""
    rng = np.random.default_rng(8)
    quants = rng.integers(least, 16 - least, (200, 3, 32))
    quants[:, :, 11], quants[:, :, 20] = least, 15 - least
    scales = 0.01 + 0.01 * rng.random((200, 3, 1))
    minima = -(7 + rng.random((200, 3, 1))) * scales
    weights = (quants * scales + minima).astype(np.float32)
    error = int4_errors(weights.reshape(200, 96))
    assert error.sum() < 1e-4 * (weights.astype(np.float64) ** 2).sum()


def test_int4_beats_the_line_through_the_ends():
    weights = np.random.default_rng(9).standard_normal((300, 64)).astype(np.float32)
    blocks = weights.reshape(-1, 32).astype(np.float64)
    low, high = blocks.min(axis=1, keepdims=True), blocks.max(axis=1, keepdims=True)
    step = (high - low) / 15
    plain = ((np.round((blocks - low) / step) * step + low - blocks) ** 2).sum()
    assert int4_errors(weights).sum() < 0.95 * plain


def test_int4_takes_more_care_of_large_values():
    weights = np.random.default_rng(10).standard_t(4, (2000, 32)).astype(np.float32)
    codec = row_codec('int4', 32)
    missed = np.abs(codec.decode(codec.encode(weights)) - weights)
    sizes = np.abs(weights)
    far = sizes > 0.9 * sizes.max(axis=1, keepdims=True)
    assert missed[far].mean() < 0.7 * missed[~far].mean()


@given(data=st.data(), dim=st.integers(1, 70), rows=st.integers(0, 3))
@settings(max_examples=100, deadline=None)
def test_fp16_rows_round_each_value(data, dim, rows):
    weights = data.draw(hnp.arrays(np.float32, (rows, dim), elements=st.floats(
        -65000, 65000, width=32)))
    codec = row_codec('fp16', dim)
    encoded = codec.encode(weights)
    assert encoded.shape == (rows, 2 * dim)
    decoded = codec.decode(encoded)
    assert decoded.dtype == np.float32
    assert decoded.tolist() == [[float(np.float16(value)) for value in row] for row in weights]


@pytest.mark.parametrize('dim', [32, 64, 320])
def test_mxfp4_rows_are_as_llama_cpp_rounds_them(dim):
    """And what was rounded before is kept exactly, zeros and small exponents among it."""
    rng = np.random.default_rng(dim)
    sizes = rng.choice([0, 1e-30, 1e-4, 1, 300], (50, dim // 32)).repeat(32, axis=1)
    weights = (rng.standard_normal((50, dim)) * sizes).astype(np.float32)
    kind = gguf.GGMLQuantizationType.MXFP4
    theirs = gguf.dequantize(gguf.quantize(weights, kind), kind)
    codec = row_codec('mxfp4', dim)
    assert codec.row_bytes == 17 * dim // 32
    np.testing.assert_array_equal(codec.decode(codec.encode(theirs)), theirs)
    missed = np.abs(codec.decode(codec.encode(weights)) - weights)
    assert (missed <= np.abs(theirs - weights) * (1 + 1e-6)).all()
    with pytest.raises(ValueError, match='mxfp4 rows: largest magnitude 1e\\+37'):
        codec.encode(np.full((1, dim), 1e37, np.float32))


@pytest.mark.parametrize('name', ['int8', 'int4', 'fp16', 'mxfp4'])
def test_biased_rows_have_their_bias_behind_them(name):
    rows = np.random.default_rng(3).standard_normal((5, 41)).astype(np.float32)
    codec, plain = row_codec(name, 40, biased=True), row_codec(name, 40)
    encoded = codec.encode(rows)
    assert encoded.shape == (5, codec.row_bytes) == (5, plain.row_bytes + 4)
    assert encoded[:, :-4].tobytes() == plain.encode(rows[:, :40]).tobytes()
    assert encoded[:, -4:].tobytes() == rows[:, 40].astype('<f4').tobytes()
    decoded = codec.decode(encoded)
    assert decoded[:, 40].tobytes() == rows[:, 40].tobytes()
    np.testing.assert_array_equal(decoded[:, :40], plain.decode(plain.encode(rows[:, :40])))


@pytest.mark.parametrize('name', ['int8', 'int4', 'fp16', 'mxfp4'])
@pytest.mark.parametrize('value', [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused(name, value):
    weights = np.zeros((3, 40), np.float32)
    weights[1, 39] = value
    with pytest.raises(ValueError, match='row 1 holds NaN or infinity'):
        row_codec(name, 40).encode(weights)


@pytest.mark.parametrize(('name', 'fits', 'overflows'), [
    ('int8', 127 * 65504, 127 * 65536), ('int4', 50000, 50001), ('fp16', 65504, 65520),
])
def test_overflow_is_refused(name, fits, overflows):
    codec = row_codec(name, 40)
    weights = np.zeros((2, 40), np.float32)
    weights[1, 5] = fits
    assert codec.decode(codec.encode(weights))[1, 5] == pytest.approx(fits, rel=2e-3)
    weights[1, 5] = -overflows
    with pytest.raises(ValueError, match=r'largest magnitude .* fp16 range'):
        codec.encode(weights)


@pytest.mark.parametrize('name', ['int8', 'int4', 'fp16', 'mxfp4'])
def test_wrong_arrays_are_refused(name):
    codec = row_codec(name, 40)
    for wrong in (np.zeros((2, 41), np.float32), np.zeros(40, np.float32), np.zeros((2, 40))):
        with pytest.raises(ValueError, match=r'rows: .* must be float32 \[n, 40\]'):
            codec.encode(wrong)
    for wrong in (np.zeros((2, 7), np.uint8), np.zeros((2, codec.row_bytes), np.int8)):
        with pytest.raises(ValueError, match=r'data: .* must be uint8'):
            codec.decode(wrong)


def test_unknown_codecs_and_sizes_are_refused():
    with pytest.raises(ValueError, match="codec is 'int3'; it must be one of "
                                         'int8, int4, fp16, mxfp4'):
        row_codec('int3', 64)
    for dim in (0, -5, 2.0, True):
        with pytest.raises(ValueError, match='dim is '):
            row_codec('int8', dim)


# Published check value, and those of RFC 3720 (iSCSI), appendix B.4.
KNOWN = [
    (b'', 0),
    (b'123456789', 0xE3069283),
    (bytes(32), 0x8A9136AA),
    (b'\xff' * 32, 0x62A8AB43),
    (bytes(range(32)), 0x46DD794E),
    (bytes(range(31, -1, -1)), 0x113FDB5C),
]


@pytest.mark.parametrize(('data', 'value'), KNOWN)
def test_known_checksums(data, value):
    assert plain_crc32c(data) == value
    assert crc32c(np.frombuffer(data, np.uint8)[None]).tolist() == [value]


@given(data=st.data(), rows=st.integers(0, 5), length=st.integers(0, 400))
@settings(max_examples=150, deadline=None)
def test_checksums_of_rows(data, rows, length):
    array = data.draw(hnp.arrays(np.uint8, (rows, length)))
    result = crc32c(array)
    assert result.dtype == np.uint32
    assert result.tolist() == [plain_crc32c(row.tobytes()) for row in array]


@given(data=st.data(), rows=st.integers(1, 5), cut=st.integers(0, 40))
@settings(max_examples=100, deadline=None)
def test_checksums_of_rows_that_go_on(data, rows, cut):
    array = data.draw(hnp.arrays(np.uint8, (rows, 40)))
    assert crc32c(array[:, cut:], crc32c(array[:, :cut])).tolist() == [
        plain_crc32c(row.tobytes()) for row in array]


def test_wrong_checksum_input_is_refused():
    for wrong in (np.zeros(4, np.uint8), np.zeros((2, 4), np.int32)):
        with pytest.raises(ValueError, match='data: '):
            crc32c(wrong)
