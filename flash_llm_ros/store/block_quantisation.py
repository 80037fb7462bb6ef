"""Block quantisation of resident matrices in the layout of ONNX Runtime's MatMulNBits."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# What a resident format means: (bits, values that share a scale).
RESIDENT_BLOCKS = {'q8': (8, 64), 'q4': (4, 32)}


@dataclass(frozen=True)
class QuantisedMatrix:
    """A matrix [out, in]: `data` uint8 [out, blocks, block * bits / 8], `scales` f32 [out, blocks].

    A value is (data - 2 ** (bits - 1)) * scale; 4-bit values lie two in a byte, low half first.
    """

    data: NDArray[np.uint8]
    scales: NDArray[np.float32]


def quantised_shapes(rows: int, columns: int,
                     resident: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Shapes of `data` and `scales` for a matrix [rows, columns]."""
    bits, block = RESIDENT_BLOCKS[resident]
    blocks = -(-columns // block)
    return (rows, blocks, block * bits // 8), (rows, blocks)


def quantise(matrix: NDArray[np.float32], resident: str) -> QuantisedMatrix:
    """Round a float32 [out, in] matrix to q8 or q4, the columns padded with zeros."""
    bits, block = RESIDENT_BLOCKS[resident]
    rows, columns = matrix.shape
    padded = np.zeros((rows, -(-columns // block) * block), np.float32)
    padded[:, :columns] = matrix
    blocks = padded.reshape(rows, -1, block)
    half = 1 << (bits - 1)
    # The value furthest from zero lands on the end of the range that reaches one step further.
    peak = np.take_along_axis(blocks, np.abs(blocks).argmax(axis=2, keepdims=True), axis=2)
    scales = peak / -half if bits == 4 else np.abs(peak) / (half - 1)
    divisor = np.where(scales == 0, 1, scales)
    values = np.clip(np.rint(blocks / divisor), -half, half - 1) + half
    data = values.astype(np.uint8)
    if bits == 4:
        data = data[:, :, 0::2] | (data[:, :, 1::2] << 4)
    return QuantisedMatrix(data, scales[:, :, 0].astype(np.float32))


def dequantise(matrix: QuantisedMatrix, resident: str, columns: int) -> NDArray[np.float32]:
    """The float32 [out, columns] matrix that MatMulNBits computes with."""
    data, scales = matrix.data, matrix.scales
    bits, _ = RESIDENT_BLOCKS[resident]
    if bits == 4:
        data = np.stack([data & 15, data >> 4], axis=3).reshape(*data.shape[:2], -1)
    values = (data.astype(np.float32) - (1 << (bits - 1))) * scales[:, :, None]
    return values.reshape(len(data), -1)[:, :columns]
