"""Row codecs: how one weight row of float32 becomes bytes of the flash store and back."""

from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np

INT8_BLOCK = 32
_INT8_LIMIT = 127


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
    def blocks(self) -> int:
        return -(-self.dim // INT8_BLOCK)

    @property
    def row_bytes(self) -> int:
        return self.blocks * (INT8_BLOCK + 2)

    def encode(self, rows: np.ndarray) -> np.ndarray:
        rows = _checked_rows(rows, self.dim)
        count = len(rows)
        padded = np.zeros((count, self.blocks * INT8_BLOCK), np.float32)
        padded[:, :self.dim] = rows
        blocks = padded.reshape(count, self.blocks, INT8_BLOCK)
        with np.errstate(over='ignore'):
            scales = (np.abs(blocks).max(axis=2) / np.float32(_INT8_LIMIT)).astype(np.float16)
        if not np.isfinite(scales).all():
            raise ValueError(f'int8 rows: largest magnitude {np.abs(rows).max():g} needs a block '
                             f'scale above the fp16 range; it must stay below 127 * 65504')
        # Against the rounded scale, so that decoding meets the value that was aimed at.
        divisor = np.where(scales > 0, scales, 1).astype(np.float32)[:, :, None]
        quants = np.rint(blocks / divisor) * (scales > 0)[:, :, None]
        quants = np.clip(quants, -_INT8_LIMIT, _INT8_LIMIT).astype(np.int8)
        data = np.empty((count, self.row_bytes), np.uint8)
        data[:, :padded.shape[1]] = quants.reshape(padded.shape).view(np.uint8)
        data[:, padded.shape[1]:] = scales.astype('<f2').view(np.uint8)
        return data

    def decode(self, data: np.ndarray) -> np.ndarray:
        data = _checked_bytes(data, self.row_bytes)
        width = self.blocks * INT8_BLOCK
        quants = data[:, :width].view(np.int8).astype(np.float32)
        scales = np.ascontiguousarray(data[:, width:]).view('<f2').astype(np.float32)
        values = quants.reshape(len(data), self.blocks, INT8_BLOCK) * scales[:, :, None]
        return np.ascontiguousarray(values.reshape(len(data), width)[:, :self.dim])


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


_CODECS: dict[str, type[Int8Codec] | type[Fp16Codec]] = {
    codec.name: codec for codec in (Int8Codec, Fp16Codec)
}
CODEC_NAMES = tuple(_CODECS)


def row_codec(name: str, dim: int) -> RowCodec:
    """The codec called ``name`` for rows of ``dim`` values; ValueError if there is none."""
    if name not in _CODECS:
        raise ValueError(f'codec: {name!r} is unknown, must be one of {", ".join(_CODECS)}')
    if not isinstance(dim, int) or isinstance(dim, bool) or dim < 1:
        raise ValueError(f'dim: {dim!r} is not a positive integer')
    return _CODECS[name](dim)


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
