"""Rotary position tables (RoFormer, arXiv 2104.09864)."""

import numpy as np
from numpy.typing import NDArray

from flash_llm_ros.model_spec import ModelSpec


def rotary_tables(spec: ModelSpec, positions: int,
                  dtype: type) -> tuple[NDArray[np.floating], NDArray[np.floating]]:
    """Cosines and sines [positions, spec.rotary_width / 2] of `dtype`."""
    exponents = np.arange(0, spec.rotary_width, 2, dtype=np.float64) / spec.rotary_width
    frequencies = spec.positions.theta ** -exponents
    if spec.positions.factors:
        frequencies /= np.asarray(spec.positions.factors)
    angles = np.arange(positions, dtype=np.float64)[:, None] * frequencies
    return np.cos(angles).astype(dtype), np.sin(angles).astype(dtype)
