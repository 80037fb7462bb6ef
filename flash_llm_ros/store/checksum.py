"""CRC32C (Castagnoli) of many equal byte rows at once, in NumPy, and what a group's is made of."""

from functools import cache

import numpy as np
from numpy.typing import NDArray

_POLYNOMIAL = 0x82F63B78
_ONES = np.uint32(0xFFFFFFFF)
_BATCH_BYTES = 1 << 18


def group_checksums(identity: int, first_group: int, contents: NDArray[np.uint8]
                    ) -> NDArray[np.uint32]:
    """The checksums of neighbouring groups, uint8 [n, bytes] without them -> uint32 [n].

    Each is the CRC32C of the store's identity (8 bytes), the group's number (4 bytes), both little
    endian, and the content: a group of another place or another store is found when it is read.
    """
    places = np.empty((len(contents), 12), np.uint8)
    places[:, :8] = np.array([identity], '<u8').view(np.uint8)
    numbers = np.arange(first_group, first_group + len(contents))
    places[:, 8:] = numbers.astype('<u4')[:, None].view(np.uint8)
    return crc32c(contents, crc32c(places))


def crc32c(data: NDArray[np.uint8], before: NDArray[np.uint32] | None = None
           ) -> NDArray[np.uint32]:
    """CRC32C of every row: uint8 [n, bytes] -> uint32 [n]; ValueError on another shape or dtype.

    `before`, uint32 [n]: goes on from these, the checksums of what comes before the rows.
    """
    data = np.asarray(data)
    if data.dtype != np.uint8 or data.ndim != 2:
        raise ValueError(f'data: {data.dtype} {list(data.shape)}, must be uint8 [n, bytes]')
    count, length = data.shape
    # A CRC is linear over GF(2): a start value, pushed through the row, is a term to add.
    starts = np.full(count, _ONES) if before is None else before ^ _ONES
    result = _shift_bytes(starts, length) ^ _ONES
    if length == 0:
        return result
    step = max(1, _BATCH_BYTES // length)
    for start in range(0, count, step):
        result[start:start + step] ^= _raw(data[start:start + step])
    return result


def _raw(data: NDArray[np.uint8]) -> NDArray[np.uint32]:
    """CRC with start value 0 and no final inversion, by pairwise joining of neighbours."""
    count, length = data.shape
    levels = max(1, (length - 1).bit_length())
    # Zeros in front leave a zero state unchanged, so any length becomes a power of two.
    padded = np.zeros((count, 1 << levels), np.uint8)
    padded[:, padded.shape[1] - length:] = data
    crcs = _pair_table().take(padded.view('<u2'))
    for level in range(1, levels):
        crcs = _shift(crcs[:, 0::2], level) ^ crcs[:, 1::2]
    return crcs[:, 0]


def _shift(crcs: NDArray[np.uint32], level: int) -> NDArray[np.uint32]:
    """The state after 2**level further zero bytes."""
    tables = _shift_tables(level)
    return (tables[0].take(crcs & 0xFF) ^ tables[1].take((crcs >> 8) & 0xFF)
            ^ tables[2].take((crcs >> 16) & 0xFF) ^ tables[3].take(crcs >> 24))


@cache
def _pair_table() -> NDArray[np.uint32]:
    """uint32 [65536]: the CRC with start value 0 of two bytes, the first one the low one."""
    pairs = np.arange(1 << 16, dtype=np.uint32)
    single = _shift_tables(0)[0]
    return _shift(single[pairs & 0xFF], 0) ^ single[pairs >> 8]


@cache
def _shift_tables(level: int) -> NDArray[np.uint32]:
    """uint32 [4, 256]: what byte j of a state becomes after 2**level zero bytes."""
    states = np.arange(256, dtype=np.uint32) << (8 * np.arange(4, dtype=np.uint32)[:, None])
    if level:
        return _shift(_shift(states, level - 1), level - 1)
    for _ in range(8):
        states = (states >> 1) ^ np.where(states & 1, np.uint32(_POLYNOMIAL), np.uint32(0))
    return states


def _shift_bytes(crcs: NDArray[np.uint32], length: int) -> NDArray[np.uint32]:
    """The states after `length` further zero bytes."""
    for level in range(length.bit_length()):
        if length >> level & 1:
            crcs = _shift(crcs, level)
    return crcs
