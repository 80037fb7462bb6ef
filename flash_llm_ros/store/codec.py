"""Row codecs: how one weight row of float32 becomes bytes of the flash store and back."""

from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np

BLOCK = 32                      # values that share a scale, in int8 and int4 rows
_INT8_LIMIT = 127
# What int4 divides a block's value furthest from zero by, to try scales: -8 puts it on the end of
# the range, the others clip it or leave room, which often rounds the other 31 values better. The
# least sum of (error * value)**2 wins: without that weight, large values are clipped too often.
_INT4_DIVISORS = (-8.0, -7.5, -8.5, -7.0, -9.0)


class RowCodec(Protocol):
    """What the store and the engine need of a codec; every row of a file has ``dim`` values."""

    name: ClassVar[str]
    dim: int

    @property
    def row_bytes(self) -> int:
        """Bytes of one encoded row; always even, so that 16 bit fields stay aligned."""

    def encode(self, rows: np.ndarray) -> np.ndarray:
        """float32 [n, dim] -> uint8 [n, row_bytes]; ValueError on what cannot be stored."""

    def decode(self, data: np.ndarray) -> np.ndarray:
        """uint8 [n, row_bytes] -> float32 [n, dim]."""


@dataclass(frozen=True)
class Int8Codec:
    """int8 values, zero padded to whole blocks of 32, then one fp16 scale per block."""

    name: ClassVar[str] = 'int8'
    dim: int

    @property
    def row_bytes(self) -> int:
        return _blocks(self.dim) * (BLOCK + 2)

    def encode(self, rows: np.ndarray) -> np.ndarray:
        blocks = _in_blocks(_checked_rows(rows, self.dim))
        with np.errstate(over='ignore'):
            scales = (np.abs(blocks).max(axis=2) / np.float32(_INT8_LIMIT)).astype(np.float16)
        if not np.isfinite(scales).all():
            raise ValueError(f'int8 rows: largest magnitude {np.abs(rows).max():g} needs a block '
                             f'scale above the fp16 range; it must stay below 127 * 65504')
        # Against the rounded scale, so that decoding meets the value that was aimed at.
        divisor = np.where(scales > 0, scales, 1).astype(np.float32)[:, :, None]
        quants = np.rint(blocks / divisor) * (scales > 0)[:, :, None]
        quants = np.clip(quants, -_INT8_LIMIT, _INT8_LIMIT).astype(np.int8)
        return _joined(quants.view(np.uint8), scales)

    def decode(self, data: np.ndarray) -> np.ndarray:
        data = _checked_bytes(data, self.row_bytes)
        quants, scales = _parted(data, self.dim)
        return _values(quants.view(np.int8).astype(np.float32), scales, self.dim)


@dataclass(frozen=True)
class Int4Codec:
    """4-bit values, zero padded to whole blocks of 32, then one fp16 scale per block.

    A value is (q - 8) * scale; the scale may be negative. A block has 16 bytes, whose low halves
    are its first 16 values and whose high halves the last 16.
    """

    name: ClassVar[str] = 'int4'
    dim: int

    @property
    def row_bytes(self) -> int:
        return _blocks(self.dim) * (BLOCK // 2 + 2)

    def encode(self, rows: np.ndarray) -> np.ndarray:
        blocks = _in_blocks(_checked_rows(rows, self.dim))
        peaks = np.take_along_axis(blocks, np.abs(blocks).argmax(axis=2)[:, :, None], axis=2)
        scales, quants, errors = self._tried(blocks, peaks, _INT4_DIVISORS[0])
        if not np.isfinite(scales).all():
            raise ValueError(f'int4 rows: largest magnitude {np.abs(rows).max():g} needs a block '
                             f'scale above the fp16 range; it must stay below 8 * 65504')
        for divisor in _INT4_DIVISORS[1:]:
            other_scales, other_quants, other_errors = self._tried(blocks, peaks, divisor)
            better = other_errors < errors      # never where a scale is infinite
            np.copyto(errors, other_errors, where=better)
            np.copyto(scales, other_scales, where=better[:, :, None])
            np.copyto(quants, other_quants, where=better[:, :, None])
        low, high = np.split((quants + np.int8(8)).view(np.uint8), 2, axis=2)
        return _joined(low | high << 4, scales)

    @staticmethod
    def _tried(blocks: np.ndarray, peaks: np.ndarray,
               divisor: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """fp16 scales [n, blocks, 1], int8 values from -8 to 7, float32 weighted errors."""
        with np.errstate(over='ignore', invalid='ignore'):
            scales = (peaks / np.float32(divisor)).astype(np.float16) + np.float16(0)     # no -0
            rounded = scales.astype(np.float32)
            # Against the rounded scale, so that decoding meets the value that was aimed at.
            quants = blocks / np.where(rounded == 0, np.inf, rounded)
            np.clip(np.rint(quants, out=quants), -8, 7, out=quants)
            missed = quants * rounded
            np.subtract(blocks, missed, out=missed)
            missed *= blocks
            errors = np.einsum('nbi,nbi->nb', missed, missed)
        return scales, quants.astype(np.int8), errors

    def decode(self, data: np.ndarray) -> np.ndarray:
        data = _checked_bytes(data, self.row_bytes)
        packed, scales = _parted(data, self.dim)
        quants = np.empty((*packed.shape[:2], BLOCK), np.float32)
        half = BLOCK // 2
        np.bitwise_and(packed, 15, out=quants[:, :, :half], casting='unsafe')
        np.right_shift(packed, 4, out=quants[:, :, half:], casting='unsafe')
        quants -= 8
        return _values(quants, scales, self.dim)


@dataclass(frozen=True)
class Fp16Codec:
    """Plain little-endian half precision values."""

    name: ClassVar[str] = 'fp16'
    dim: int

    @property
    def row_bytes(self) -> int:
        return 2 * self.dim

    def encode(self, rows: np.ndarray) -> np.ndarray:
        rows = _checked_rows(rows, self.dim)
        with np.errstate(over='ignore'):
            halves = rows.astype('<f2', order='C')
        if not np.isfinite(halves).all():
            raise ValueError(f'fp16 rows: largest magnitude {np.abs(rows).max():g} is outside the '
                             f'fp16 range (65504)')
        return halves.view(np.uint8).reshape(len(rows), self.row_bytes)

    def decode(self, data: np.ndarray) -> np.ndarray:
        data = np.ascontiguousarray(_checked_bytes(data, self.row_bytes))
        return data.view('<f2').astype(np.float32).reshape(len(data), self.dim)


_CODECS: dict[str, type[Int8Codec] | type[Int4Codec] | type[Fp16Codec]] = {
    codec.name: codec for codec in (Int8Codec, Int4Codec, Fp16Codec)
}
CODEC_NAMES = tuple(_CODECS)


def row_codec(name: str, dim: int) -> RowCodec:
    """The codec called ``name`` for rows of ``dim`` values; ValueError if there is none."""
    if name not in _CODECS:
        raise ValueError(f'codec: {name!r} is unknown, must be one of {", ".join(_CODECS)}')
    if not isinstance(dim, int) or isinstance(dim, bool) or dim < 1:
        raise ValueError(f'dim: {dim!r} is not a positive integer')
    return _CODECS[name](dim)


def _blocks(dim: int) -> int:
    return -(-dim // BLOCK)


def _in_blocks(rows: np.ndarray) -> np.ndarray:
    """float32 [n, dim] -> [n, blocks, 32], zeros behind."""
    count, dim = rows.shape
    padded = np.zeros((count, _blocks(dim) * BLOCK), np.float32)
    padded[:, :dim] = rows
    return padded.reshape(count, _blocks(dim), BLOCK)


def _joined(quants: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """uint8 [n, blocks, bytes] and as many fp16 scales -> uint8 [n, row_bytes]."""
    count, blocks, width = quants.shape
    data = np.empty((count, blocks * (width + 2)), np.uint8)
    data[:, :blocks * width] = quants.reshape(count, blocks * width)
    data[:, blocks * width:] = scales.reshape(count, blocks).astype('<f2').view(np.uint8)
    return data


def _parted(data: np.ndarray, dim: int) -> tuple[np.ndarray, np.ndarray]:
    """The inverse of _joined; scales float32 [n, blocks, 1]."""
    blocks = _blocks(dim)
    width = data.shape[1] - 2 * blocks
    quants = np.ascontiguousarray(data[:, :width]).reshape(len(data), blocks, width // blocks)
    scales = np.ascontiguousarray(data[:, width:]).view('<f2').astype(np.float32)
    return quants, scales[:, :, None]


def _values(quants: np.ndarray, scales: np.ndarray, dim: int) -> np.ndarray:
    """float32 [n, blocks, 32] times its scales, in place -> [n, dim]."""
    quants *= scales
    return np.ascontiguousarray(quants.reshape(len(quants), _blocks(dim) * BLOCK)[:, :dim])


def _checked_rows(rows: np.ndarray, dim: int) -> np.ndarray:
    rows = np.asarray(rows)
    if rows.dtype != np.float32 or rows.ndim != 2 or rows.shape[1] != dim:
        raise ValueError(f'rows: {rows.dtype} {list(rows.shape)}, must be float32 [n, {dim}]')
    if not np.isfinite(rows).all():
        bad = int(np.flatnonzero(~np.isfinite(rows).all(axis=1))[0])
        raise ValueError(f'rows: row {bad} holds NaN or infinity, every weight must be finite')
    return rows


def _checked_bytes(data: np.ndarray, row_bytes: int) -> np.ndarray:
    data = np.asarray(data)
    if data.dtype != np.uint8 or data.ndim != 2 or data.shape[1] != row_bytes:
        raise ValueError(f'data: {data.dtype} {list(data.shape)}, must be uint8 [n, {row_bytes}]')
    return data
