"""Rounding blocks of weights to 4 bits: a line per block, value = (q - 8) * scale + offset."""

import numpy as np
from numpy.typing import NDArray

# Steps that a block's span may have. 15 fill the range; with fewer, the steps of a source that
# left the ends unused are found; with more, the block's two furthest values are cut.
_SPANS = (15, 14, 13, 12, 16, 17)

Array = NDArray[np.float32]


def fitted_lines(blocks: Array, weights: Array) -> tuple[Array, Array, Array]:
    """The line of each block with the least weighted squared error, over all spans.

    `blocks` and `weights` float32 [n, blocks, size], weights not negative, none of a block all
    zero. Returns q, 0 to 15, as float32 [n, blocks, size], scales and offsets [n, blocks, 1].
    A source of 4-bit blocks with a minimum (GGUF's Q4_1, Q4_K) is met without error.
    """
    shares = weights / weights.sum(axis=2, keepdims=True)
    low = blocks.min(axis=2, keepdims=True)
    width = blocks.max(axis=2, keepdims=True) - low
    mean = _sums(shares, blocks)
    centred = blocks - mean
    best = np.full(low.shape, np.inf, np.float32)
    values, scales = np.zeros(blocks.shape, np.float32), np.zeros_like(low)
    for span in _SPANS:
        step = width / np.float32(span)
        start = low + max(span - 15, 0) / 2 * step
        tried = np.rint((blocks - start) / np.where(step == 0, 1, step)).clip(0, 15)
        steps = tried - _sums(shares, tried)
        weighted = shares * steps
        spread = _sums(weighted, steps)
        scale = _sums(weighted, centred) / np.where(spread == 0, 1, spread)
        steps *= scale
        steps -= centred
        error = _sums(shares * steps, steps)
        better = error < best
        np.copyto(best, error, where=better)
        np.copyto(scales, scale, where=better)
        np.copyto(values, tried, where=better)
    return values, scales, mean - (_sums(shares, values) - 8) * scales


def nearest(blocks: Array, scales: Array, offsets: Array) -> Array:
    """q, 0 to 15, of the point next to each value on its block's line; shapes as above."""
    slopes = np.where(scales == 0, np.inf, scales)
    return np.rint((blocks - offsets) / slopes + 8).clip(0, 15)


def _sums(a: Array, b: Array) -> Array:
    return np.einsum('rbi,rbi->rb', a, b)[:, :, None]
