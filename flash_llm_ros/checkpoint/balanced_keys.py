"""Keys whose values are about equally large, so that few bits can tell them apart.

A bias on keys (Qwen2) makes some of a head's values a hundred times as large as others, which a
scale that they share rounds away. What a query's value is multiplied with and a key's divided by
leaves their product as it is (SmoothQuant, arXiv 2211.10438); rows of matrices and biases take it.
"""

import numpy as np
from numpy.typing import NDArray

from flash_llm_ros.model_spec import AttentionSpec, ModelSpec

Array = NDArray[np.float32]

BALANCED_PARTS = ('q', 'q_bias', 'k', 'k_bias')     # of a layer's tensors


def keys_are_balanced(spec: ModelSpec) -> bool:
    """Whether a model's keys are: those with a bias, unless a norm evens them out."""
    return (spec.core_attention and spec.norm.first and spec.attention.bias
            and spec.attention.qk_norm == 'none')


def key_sizes(spec: ModelSpec, keys: Array, bias: Array, norm: Array) -> Array:
    """About the largest values of a layer's keys, relative to each other, [kv_heads, head_dim].

    `keys`: [kv_heads * head_dim, hidden_size], `bias`: one for each row, `norm`: weights of the
    norm of attention's input, whose numbers have a mean square of 1.
    """
    most = np.abs(bias) + 4 * np.linalg.norm(keys * norm, axis=1)   # but for one of 10,000
    sizes = np.log2(np.maximum(most, 1e-6)).reshape(-1, spec.attention.head_dim)
    half = spec.rotary_width // 2       # two that turn together stay together
    sizes[:, :half] = sizes[:, half:2 * half] = np.maximum(sizes[:, :half], sizes[:, half:2 * half])
    steps = np.clip(sizes - sizes.mean(1, keepdims=True), -8, 8)
    return np.exp2(steps).astype(np.float32)


def balancing_factors(part: str, sizes: Array, attention: AttentionSpec) -> Array:
    """What each row of one of `BALANCED_PARTS` is multiplied with; `sizes` as of `key_sizes`."""
    if part.startswith('k'):
        return 1 / sizes.reshape(-1)
    return sizes.repeat(attention.heads // attention.kv_heads, axis=0).reshape(-1)
