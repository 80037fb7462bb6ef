"""How x is rounded before dot products with int8, int4 and mxfp4 rows, as in the native core."""

import numpy as np

from flash_llm_ros.store.codec import BLOCK

_LEVELS = {'int8': np.float32(127 * 256), 'int4': np.float32(127),
           'mxfp4': np.float32(127)}
_LEAST_PEAK = np.float32(1e-30)


def rounded(x: np.ndarray, codec: str) -> np.ndarray:
    """float32 [S, dim] -> float32 [S, dim] in steps of a scale per block of 32; fp16 rows: x.

    The rule is in native/math/kernels.hpp. A block with a NaN or an infinity becomes NaN.
    """
    if codec not in _LEVELS:
        return x
    tokens, dim = x.shape
    blocks = np.zeros((tokens, -(-dim // BLOCK) * BLOCK), np.float32)
    blocks[:, :dim] = x
    blocks = blocks.reshape(tokens, -1, BLOCK)
    peaks = np.abs(blocks).max(axis=2, keepdims=True)
    peaks = np.where(np.isfinite(peaks), peaks, np.float32(np.nan))
    zero = peaks < _LEAST_PEAK
    divisors = np.where(zero, np.float32(1), peaks)
    steps = np.rint(blocks * (_LEVELS[codec] / divisors))
    result = np.where(zero, np.float32(0), steps * (divisors / _LEVELS[codec]))
    return result.reshape(tokens, -1)[:, :dim]
