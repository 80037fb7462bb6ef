"""MXFP4 (OCP Microscaling Formats 1.0): blocks of 32 values of 4 bits with a power of two each."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

_LEVELS = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32)
_VALUES = np.concatenate([_LEVELS, -_LEVELS])       # by their 4 bits: a sign, e2m1
_EXPONENT_OF_1 = 127


def mxfp4_values(blocks: NDArray[Any], scales: NDArray[Any]) -> NDArray[np.float32]:
    """uint8 [..., blocks, 16] and uint8 [..., blocks] -> float32 [..., 32 * blocks].

    As Hugging Face folders have them: the low half of a byte is the earlier value.
    """
    values = _VALUES[np.stack([blocks & 15, blocks >> 4], axis=-1)]
    values = values.reshape(*blocks.shape[:-1], -1)
    exponents = scales.astype(np.int32) - _EXPONENT_OF_1
    with np.errstate(over='ignore'):     # of the scale that means NaN, which is refused later
        values = np.ldexp(values, exponents[..., None])
    return values.reshape(*blocks.shape[:-2], -1)
