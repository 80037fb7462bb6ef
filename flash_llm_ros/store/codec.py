"""Row codecs: how one weight row of float32 becomes bytes of the flash store and back."""

from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np

from flash_llm_ros.checked_fields import check
from flash_llm_ros.store.four_bit_lines import BLOCK, carried, fitted_lines, nearest

_INT8_LIMIT = 127
_INT4_ROWS_AT_ONCE = 64         # to stay within the processor's caches
_CARRIED_ROWS_AT_ONCE = 1024    # value by value: many rows for each of many steps
_INT4_MOST = 50000              # magnitude whose scale and offset surely fit
_MXFP4_LEVELS = np.array([0, 1, 2, 3, 4, 6, 8, 12], np.float32)     # e2m1, times 2
_MXFP4_VALUES = np.concatenate([_MXFP4_LEVELS, -_MXFP4_LEVELS])     # by 4 bits
_MXFP4_BOUNDS = (_MXFP4_LEVELS[1:] + _MXFP4_LEVELS[:-1]) / 2
_MXFP4_MOST = 120               # exponent of magnitudes


class RowCodec(Protocol):
    """What the store and the engine need of a codec of rows of ``dim`` values."""

    name: str
    dim: int
    biased: bool                # whether rows are given, and give, one value more

    @property
    def row_bytes(self) -> int:
        """Bytes of one encoded row; even where it has fields of 16 bits, which stay aligned so."""

    def encode(self, rows: np.ndarray, root: np.ndarray | None = None) -> np.ndarray:
        """float32 [n, dim] -> uint8 [n, row_bytes]; ValueError on what cannot be stored.

        `root`, of the covariance of the rows' inputs: errors are to make up for each other on these
        (`four_bit_lines.carried`). Only int4 rounds so far that it does.
        """

    def decode(self, data: np.ndarray) -> np.ndarray:
        """uint8 [n, row_bytes] -> float32 [n, dim]."""


@dataclass(frozen=True)
class Int8Codec:
    """int8 values, zero padded to whole blocks of 32, then one fp16 scale per block."""

    name: ClassVar[str] = 'int8'
    biased: ClassVar[bool] = False
    dim: int

    @property
    def row_bytes(self) -> int:
        return _blocks(self.dim) * (BLOCK + 2)

    def encode(self, rows: np.ndarray, root: np.ndarray | None = None) -> np.ndarray:
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
    """4-bit values in blocks of 32, each with a scale and an offset of 8 bits; two fp16 for all.

    A value is (q - 8) * scale + offset; scale = uint8 * top_scale / 256, offset = int8 *
    top_offset / 128. A row: 16 bytes a block, whose low halves are its first 16 values and whose
    high halves the last 16; the scales; the offsets; top_scale and top_offset.
    """

    name: ClassVar[str] = 'int4'
    biased: ClassVar[bool] = False
    dim: int

    @property
    def row_bytes(self) -> int:
        return _blocks(self.dim) * (BLOCK // 2 + 2) + 4

    def encode(self, rows: np.ndarray, root: np.ndarray | None = None) -> np.ndarray:
        rows = _checked_rows(rows, self.dim)
        if (largest := np.abs(rows).max(initial=0)) > _INT4_MOST:
            raise ValueError(f'int4 rows: largest magnitude {largest:g} may need a scale above the '
                             f'fp16 range; it must be at most {_INT4_MOST}')
        data = np.empty((len(rows), self.row_bytes), np.uint8)
        at_once = _INT4_ROWS_AT_ONCE if root is None else _CARRIED_ROWS_AT_ONCE
        for start in range(0, len(rows), at_once):
            some = slice(start, start + at_once)
            data[some] = self._encoded(rows[some], root)
        return data

    def _encoded(self, rows: np.ndarray, root: np.ndarray | None) -> np.ndarray:
        # Behind the row its last value again, which widens no block.
        padded = np.pad(rows, ((0, 0), (0, -self.dim % BLOCK)), mode='edge')
        blocks = padded.reshape(len(rows), -1, BLOCK)
        weights = _weights(blocks) if root is None else np.empty_like(blocks)
        flat = weights.reshape(len(rows), -1)
        if root is not None:
            flat[:, :self.dim] = root.diagonal() ** 2
        flat[:, self.dim:] = 0
        _, scales, offsets = fitted_lines(blocks, weights)
        scales, offsets = scales[:, :, 0], offsets[:, :, 0]
        top_scale = _top(scales, 255 / 256)
        top_offset = _top(offsets, 127 / 128)
        scale_codes = _codes(scales, top_scale / np.float32(256), 0, 255)
        offset_codes = _codes(offsets, top_offset / np.float32(128), -127, 127)
        # Against the rounded line, so that decoding meets the values that were aimed at.
        lines = _lines(scale_codes, offset_codes, top_scale, top_offset)
        quants = nearest(blocks, *lines)
        if root is not None:
            quants.reshape(len(rows), -1)[:, :self.dim] = carried(rows, *lines, root)
        low, high = np.split(quants.astype(np.uint8), 2, axis=2)
        count = len(rows)
        return np.concatenate([(low | high << 4).reshape(count, -1), scale_codes.astype(np.uint8),
                               offset_codes.astype(np.int8).view(np.uint8),
                               top_scale.astype('<f2').view(np.uint8),
                               top_offset.astype('<f2').view(np.uint8)], axis=1)

    def decode(self, data: np.ndarray) -> np.ndarray:
        data = _checked_bytes(data, self.row_bytes)
        count, blocks, half = len(data), _blocks(self.dim), BLOCK // 2
        packed = np.ascontiguousarray(data[:, :blocks * half]).reshape(count, blocks, half)
        scale_codes = data[:, blocks * half:blocks * (half + 1)]
        offset_codes = data[:, blocks * (half + 1):-4].view(np.int8)
        tops = np.ascontiguousarray(data[:, -4:]).view('<f2').astype(np.float32)
        scales, offsets = _lines(scale_codes.astype(np.float32), offset_codes.astype(np.float32),
                                 tops[:, :1], tops[:, 1:])
        quants = np.empty((count, blocks, BLOCK), np.float32)
        np.bitwise_and(packed, 15, out=quants[:, :, :half], casting='unsafe')
        np.right_shift(packed, 4, out=quants[:, :, half:], casting='unsafe')
        quants -= 8
        quants *= scales
        quants += offsets
        return np.ascontiguousarray(quants.reshape(count, blocks * BLOCK)[:, :self.dim])


@dataclass(frozen=True)
class Fp16Codec:
    """Plain little-endian half precision values."""

    name: ClassVar[str] = 'fp16'
    biased: ClassVar[bool] = False
    dim: int

    @property
    def row_bytes(self) -> int:
        return 2 * self.dim

    def encode(self, rows: np.ndarray, root: np.ndarray | None = None) -> np.ndarray:
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


@dataclass(frozen=True)
class Mxfp4Codec:
    """MXFP4 (OCP Microscaling Formats 1.0): blocks of 32 values of 4 bits with a power of two each.

    A row: 16 bytes a block, as of int4; then a byte a block, 127 and the exponent of half of its
    scale, so that values are whole numbers, or 0 in a block of zeros. Exact for what was rounded to
    it before; other values are the nearest that the largest one of their block leaves room for.
    """

    name: ClassVar[str] = 'mxfp4'
    biased: ClassVar[bool] = False
    dim: int

    @property
    def row_bytes(self) -> int:
        return _blocks(self.dim) * (BLOCK // 2 + 1)

    def encode(self, rows: np.ndarray, root: np.ndarray | None = None) -> np.ndarray:
        blocks = _in_blocks(_checked_rows(rows, self.dim))
        _, exponents = np.frexp(np.abs(blocks).max(axis=2))
        if (exponents > _MXFP4_MOST).any():
            raise ValueError(f'mxfp4 rows: largest magnitude {np.abs(rows).max():g}; it must stay '
                             f'below 2^{_MXFP4_MOST}')
        codes = np.maximum(exponents - 4 + 127, 0)
        whole = np.ldexp(blocks, (127 - codes)[:, :, None]) * (codes > 0)[:, :, None]
        quants = np.searchsorted(_MXFP4_BOUNDS, np.abs(whole)).astype(np.uint8)
        quants |= ((whole < 0) & (quants > 0)).astype(np.uint8) << 3
        low, high = np.split(quants, 2, axis=2)
        return np.concatenate([(low | high << 4).reshape(len(rows), -1),
                               codes.astype(np.uint8)], axis=1)

    def decode(self, data: np.ndarray) -> np.ndarray:
        data = _checked_bytes(data, self.row_bytes)
        blocks = _blocks(self.dim)
        packed = data[:, :blocks * BLOCK // 2].reshape(len(data), blocks, BLOCK // 2)
        values = _MXFP4_VALUES[np.concatenate([packed & 15, packed >> 4], axis=2)]
        codes = data[:, blocks * BLOCK // 2:].astype(np.int32)
        scaled = np.ldexp(values, (codes - 127)[:, :, None]) * (codes > 0)[:, :, None]
        return np.ascontiguousarray(scaled.reshape(len(data), -1)[:, :self.dim], np.float32)


@dataclass(frozen=True)
class BiasedCodec:
    """Rows of another codec, each with its bias behind it, float32."""

    biased: ClassVar[bool] = True
    rows: RowCodec

    @property
    def name(self) -> str:
        return self.rows.name

    @property
    def dim(self) -> int:
        """Without the bias."""
        return self.rows.dim

    @property
    def row_bytes(self) -> int:
        return self.rows.row_bytes + 4

    def encode(self, rows: np.ndarray, root: np.ndarray | None = None) -> np.ndarray:
        """float32 [n, dim + 1], the bias last."""
        rows = _checked_rows(rows, self.dim + 1)
        biases = np.ascontiguousarray(rows[:, -1:], '<f4').view(np.uint8)
        return np.concatenate([self.rows.encode(rows[:, :-1], root), biases], axis=1)

    def decode(self, data: np.ndarray) -> np.ndarray:
        data = _checked_bytes(data, self.row_bytes)
        biases = np.ascontiguousarray(data[:, -4:]).view('<f4').astype(np.float32)
        return np.concatenate([self.rows.decode(data[:, :-4]), biases], axis=1)


_CODECS: dict[str, type[Int8Codec] | type[Int4Codec] | type[Fp16Codec] | type[Mxfp4Codec]] = {
    codec.name: codec for codec in (Int8Codec, Int4Codec, Fp16Codec, Mxfp4Codec)
}
NEURON_CODECS = ('int8', 'int4', 'fp16')    # to choose from; int4 takes mxfp4 where it is exact
CODEC_NAMES = tuple(_CODECS)


def row_codec(name: str, dim: int, biased: bool = False) -> RowCodec:
    """The codec called ``name`` for rows of ``dim`` values; FieldError if there is none.

    ``biased``: each row has a value more, which is added to dot products with it.
    """
    check(name in _CODECS, 'codec', name, f'one of {", ".join(_CODECS)}')
    check(isinstance(dim, int) and not isinstance(dim, bool) and dim > 0, 'dim', dim,
          'a positive integer')
    codec = _CODECS[name](dim)
    return BiasedCodec(codec) if biased else codec


def _blocks(dim: int) -> int:
    return -(-dim // BLOCK)


def _in_blocks(rows: np.ndarray) -> np.ndarray:
    """float32 [n, dim] -> [n, blocks, 32], zeros behind."""
    count, dim = rows.shape
    padded = np.zeros((count, _blocks(dim) * BLOCK), np.float32)
    padded[:, :dim] = rows
    return padded.reshape(count, _blocks(dim), BLOCK)


def _weights(blocks: np.ndarray) -> np.ndarray:
    """Large values weigh more: few of them carry most of what a row says."""
    weights = blocks * blocks
    weights += weights.mean(axis=2, keepdims=True)
    weights += weights.max(axis=2, keepdims=True) == 0
    return weights


def _top(values: np.ndarray, share: float) -> np.ndarray:
    """float32 [n, 1] of fp16 values: what the row's largest magnitude is `share` of."""
    top = np.abs(values).max(axis=1, keepdims=True) / np.float32(share)
    return top.astype(np.float16).astype(np.float32)


def _codes(values: np.ndarray, steps: np.ndarray, least: int, most: int) -> np.ndarray:
    """Whole numbers as float32 [n, blocks]; zeros where the step is zero."""
    return np.rint(values / np.where(steps == 0, np.inf, steps)).clip(least, most)


def _lines(scale_codes: np.ndarray, offset_codes: np.ndarray, top_scale: np.ndarray,
           top_offset: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Scales and offsets, float32 [n, blocks, 1], of codes [n, blocks] and tops [n, 1]."""
    return ((scale_codes * (top_scale / np.float32(256)))[:, :, None],
            (offset_codes * (top_offset / np.float32(128)))[:, :, None])


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
