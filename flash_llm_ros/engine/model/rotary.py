"""Rotary position tables (RoFormer, arXiv 2104.09864)."""

import numpy as np
from numpy.typing import NDArray

from flash_llm_ros.model_spec import ModelSpec


def rotary_tables(spec: ModelSpec, positions: int,
                  dtype: type) -> tuple[NDArray[np.floating], NDArray[np.floating]]:
    """Cosines and sines [positions, head_dim / 2] of `dtype`."""
    exponents = np.arange(0, spec.head_dim, 2, dtype=np.float64) / spec.head_dim
    frequencies = spec.rope_theta ** -exponents
    if spec.rope_factors:
        frequencies /= np.asarray(spec.rope_factors)
    angles = np.arange(positions, dtype=np.float64)[:, None] * frequencies
    return np.cos(angles).astype(dtype), np.sin(angles).astype(dtype)
