"""Rounding blocks of weights to 4 bits: a line per block, value = (q - 8) * scale + offset."""

import numpy as np
from numpy.typing import NDArray

BLOCK = 32                      # values that share a scale, in int8 and int4 rows
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


def carried(rows: Array, scales: Array, offsets: Array, root: Array) -> Array:
    """q as of `nearest`, but each of a value that makes up for what earlier ones of its row miss.

    The values' products with inputs are to be right together (GPTQ, arXiv 2210.17323; in this form
    2307.13304, section 3): `root` is the upper triangular V, float32 [dim, dim], of the inputs'
    covariance V V^T. The squared error of the products of errors E is |E V|^2, of which column j is
    V[j, j] (E[j] + sum of E[i] V[i, j] / V[j, j] over i < j), so that sum is added to value j.
    `rows` float32 [n, dim]; a line of `scales` and `offsets` [n, blocks, 1] for each `BLOCK` of
    them. Returns q as float32 [n, dim].
    """
    dim, carry = len(root), root / root.diagonal()
    errors, quants = np.zeros((2, dim, len(rows)), np.float32)
    slopes = np.where(scales == 0, np.inf, scales)
    for block, first in enumerate(range(0, dim, BLOCK)):
        some = slice(first, min(first + BLOCK, dim))
        scale, slope, offset = (part[:, block, 0] for part in (scales, slopes, offsets))
        aims = rows[:, some].T + carry[:first, some].T @ errors[:first]
        for column, aim in enumerate(aims, first):
            aim += carry[first:column, column] @ errors[first:column]
            quants[column] = np.rint((aim - offset) / slope + 8).clip(0, 15)
            errors[column] = rows[:, column] - ((quants[column] - 8) * scale + offset)
    return quants.T


def _sums(a: Array, b: Array) -> Array:
    return np.einsum('rbi,rbi->rb', a, b)[:, :, None]
