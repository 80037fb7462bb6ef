"""Block quantisation of resident matrices in the layout of ONNX Runtime's MatMulNBits."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from flash_llm_ros.store.four_bit_lines import fitted_lines

# 4-bit blocks are those of GGUF's Q4_1 and Q4_K, whose values they can therefore keep.
Q4_BLOCK = 32
OFFSET_BLOCK = 32
_Q8_BLOCKS = (128, 64)
_ROWS_AT_ONCE = 64

Array = NDArray[np.float32]


@dataclass(frozen=True)
class QuantisedMatrix:
    """A matrix [out, in]: `data` uint8 [out, blocks, block * bits / 8], `scales` f32 [out, blocks].

    A value is (data - 2 ** (bits - 1)) * scale, plus its block's entry of the matrix `offsets`
    [out, blocks] where there is one; 4-bit values lie two in a byte, low half first.
    """

    bits: int
    data: NDArray[np.uint8]
    scales: Array
    offsets: 'QuantisedMatrix | None' = None


def block_of(resident: str, columns: int) -> int:
    """Values that share a scale in a q8 or q4 matrix; 8 bits: the widest that pads no more."""
    if resident == 'q4':
        return Q4_BLOCK
    narrowest = _Q8_BLOCKS[-1]
    padded = -(-columns // narrowest) * narrowest
    return next(block for block in _Q8_BLOCKS if padded % block == 0)


def quantise(matrix: Array, resident: str) -> QuantisedMatrix:
    """Round a float32 [out, in] matrix to q8 or q4, the columns padded with zeros."""
    if resident == 'q8':
        return _rounded_to_8_bits(matrix, block_of(resident, matrix.shape[1]))
    parts = [_rounded_to_4_bits(_in_blocks(matrix[start:start + _ROWS_AT_ONCE], Q4_BLOCK))
             for start in range(0, len(matrix), _ROWS_AT_ONCE)]
    values, scales, offsets = (np.concatenate(part) for part in zip(*parts, strict=True))
    return QuantisedMatrix(4, values[:, :, 0::2] | (values[:, :, 1::2] << 4), scales,
                           _rounded_to_8_bits(offsets, OFFSET_BLOCK))


def dequantise(matrix: QuantisedMatrix, columns: int) -> Array:
    """The float32 [out, columns] matrix that a graph computes with."""
    data = matrix.data
    if matrix.bits == 4:
        data = np.stack([data & 15, data >> 4], axis=3).reshape(*data.shape[:2], -1)
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


def _rounded_to_4_bits(blocks: Array) -> tuple[NDArray[np.uint8], Array, Array]:
    """Values uint8 [out, blocks, 32] of 0 to 15, scales and offsets float32 [out, blocks]."""
    values, scales, offsets = fitted_lines(blocks, np.ones_like(blocks))
    return values.astype(np.uint8), scales[:, :, 0], offsets[:, :, 0]
