"""What turns queries and keys by their positions: RoFormer, arXiv 2104.09864."""

import numpy as np
from numpy.typing import NDArray

from flash_llm_ros.model_spec import ModelSpec

Tables = tuple[NDArray[np.floating], NDArray[np.floating]]


def rotary_inputs(spec: ModelSpec, context: int,
                  dtype: type) -> list[dict[str, NDArray[np.floating]]]:
    """`cos` and `sin` of each layer for a KV cache of `context` tokens; layers share theirs.

    Empty for layers without rotary positions.
    """
    kinds: dict[bool, dict[str, NDArray[np.floating]]] = {}
    for local in {spec.local(layer) for layer in range(spec.layers)}:
        cos, sin = rotary_tables(spec, context, dtype, local)
        kinds[local] = {'cos': cos, 'sin': sin}
    return [kinds[spec.local(layer)] if spec.positions.turns(layer) else {}
            for layer in range(spec.layers)]


def rotary_tables(spec: ModelSpec, context: int, dtype: type, local: bool = False) -> Tables:
    """Cosines and sines [context, spec.rotary_width / 2] of `dtype`.

    `local`: of the layers that have a wavelength of their own.
    """
    scale = 1.0 if local else spec.positions.scale
    frequencies = spec.rotary_frequencies(context, local)
    angles = np.arange(context, dtype=np.float64)[:, None] * frequencies
    return (scale * np.cos(angles)).astype(dtype), (scale * np.sin(angles)).astype(dtype)
