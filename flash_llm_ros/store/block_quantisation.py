"""Block quantisation of resident matrices in the layout of ONNX Runtime's MatMulNBits."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from flash_llm_ros.store.four_bit_lines import fitted_lines

# 4-bit blocks are those of GGUF's Q4_1 and Q4_K, whose values they can therefore keep.
Q4_BLOCK = 32
OFFSET_BLOCK = 32
Q2_BLOCK = 64
# What a 2-bit block's value furthest from zero is divided by, to try scales: values are -2 to 1
# times a scale of either sign.
_Q2_DIVISORS = (-1.6, -2.0, -1.3, -2.5, -3.2)
_Q8_BLOCKS = (128, 64)
_ROWS_AT_ONCE = 64

Array = NDArray[np.float32]


@dataclass(frozen=True)
class QuantisedMatrix:
    """A matrix [out, in]: `data` uint8 [out, blocks, block * bits / 8], `scales` f32 [out, blocks].

    A value is (data - 2 ** (bits - 1)) * scale, plus its block's entry of the matrix `offsets`
    [out, blocks] where there is one. 4-bit values lie two in a byte and 2-bit ones four, the first
    in the lowest bits.
    """

    bits: int
    data: NDArray[np.uint8]
    scales: Array
    offsets: 'QuantisedMatrix | None' = None


def block_of(resident: str, columns: int) -> int:
    """Values that share a scale in a quantised matrix; 8 bits: the widest that pads no more."""
    if resident in ('q2', 'q4'):
        return Q2_BLOCK if resident == 'q2' else Q4_BLOCK
    narrowest = _Q8_BLOCKS[-1]
    padded = -(-columns // narrowest) * narrowest
    return next(block for block in _Q8_BLOCKS if padded % block == 0)


def quantise(matrix: Array, resident: str) -> QuantisedMatrix:
    """Round a float32 [out, in] matrix to q8, q4 or q2, the columns padded with zeros."""
    if resident == 'q8':
        return _rounded_to_8_bits(matrix, block_of(resident, matrix.shape[1]))
    if resident == 'q2':
        return _rounded_to_2_bits(_in_blocks(matrix, Q2_BLOCK))
    parts = [_rounded_to_4_bits(_in_blocks(matrix[start:start + _ROWS_AT_ONCE], Q4_BLOCK))
             for start in range(0, len(matrix), _ROWS_AT_ONCE)]
    values, scales, offsets = (np.concatenate(part) for part in zip(*parts, strict=True))
    return QuantisedMatrix(4, values[:, :, 0::2] | (values[:, :, 1::2] << 4), scales,
                           _rounded_to_8_bits(offsets, OFFSET_BLOCK))


def dequantise(matrix: QuantisedMatrix, columns: int) -> Array:
    """The float32 [out, columns] matrix that a graph computes with."""
    data, bits = matrix.data, matrix.bits
    if bits < 8:
        data = np.stack([data >> shift & (1 << bits) - 1 for shift in range(0, 8, bits)],
                        axis=3).reshape(*data.shape[:2], -1)
    values = (data.astype(np.float32) - (1 << (matrix.bits - 1))) * matrix.scales[:, :, None]
    if matrix.offsets is not None:
        values += dequantise(matrix.offsets, values.shape[1])[:, :, None]
    return values.reshape(len(data), -1)[:, :columns]


def relative_error(matrix: Array, resident: str) -> float:
    """Squared error of the rounded matrix over the matrix's square sum; 0 for zeros."""
    missed = dequantise(quantise(matrix, resident), matrix.shape[1]) - matrix
    return float(np.vdot(missed, missed) / max(np.vdot(matrix, matrix), np.finfo(np.float32).tiny))


def _in_blocks(matrix: Array, block: int) -> Array:
    """float32 [out, in] -> [out, blocks, block], zeros behind."""
    rows, columns = matrix.shape
    padded = np.zeros((rows, -(-columns // block) * block), np.float32)
    padded[:, :columns] = matrix
    return padded.reshape(rows, -1, block)


def _rounded_to_8_bits(matrix: Array, block: int) -> QuantisedMatrix:
    blocks = _in_blocks(matrix, block)
    scales = np.abs(blocks).max(axis=2, keepdims=True) / np.float32(127)
    values = np.rint(blocks / np.where(scales == 0, 1, scales)) + 128
    return QuantisedMatrix(8, values.astype(np.uint8), scales[:, :, 0])


def _rounded_to_2_bits(blocks: Array) -> QuantisedMatrix:
    """For each block the scale, of some around its largest value, with the least squared error."""
    peaks = np.take_along_axis(blocks, np.abs(blocks).argmax(axis=2)[:, :, None], axis=2)
    best = np.full(peaks.shape, np.inf, np.float32)
    values, scales = np.zeros(blocks.shape, np.float32), np.zeros_like(peaks)
    for divisor in _Q2_DIVISORS:
        scale = peaks / np.float32(divisor)
        tried = np.rint(blocks / np.where(scale == 0, 1, scale)).clip(-2, 1)
        error = np.square(blocks - tried * scale).sum(axis=2, keepdims=True)
        better = error < best
        np.copyto(best, error, where=better)
        np.copyto(scales, scale, where=better)
        np.copyto(values, tried, where=better)
    quarters = (values + 2).astype(np.uint8)
    data = sum(quarters[:, :, part::4] << np.uint8(2 * part) for part in range(4))
    return QuantisedMatrix(2, data.astype(np.uint8), scales[:, :, 0])


def _rounded_to_4_bits(blocks: Array) -> tuple[NDArray[np.uint8], Array, Array]:
    """Values uint8 [out, blocks, 32] of 0 to 15, scales and offsets float32 [out, blocks]."""
    values, scales, offsets = fitted_lines(blocks, np.ones_like(blocks))
    return values.astype(np.uint8), scales[:, :, 0], offsets[:, :, 0]
