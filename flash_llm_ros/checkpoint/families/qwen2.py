"""The qwen2 family: llama with biases on the queries, keys and values."""

from dataclasses import replace
from typing import Any

from flash_llm_ros.checkpoint.families import llama
from flash_llm_ros.checkpoint.families.llama import gguf_name, huggingface_name, tensor_shapes

__all__ = ['GGUF_PERMUTED', 'gguf_name', 'huggingface_name', 'spec_from_gguf',
           'spec_from_huggingface', 'tensor_shapes']

GGUF_PERMUTED = ()


def spec_from_huggingface(config: dict[str, Any], name: str) -> dict[str, Any]:
    """ModelSpec fields from config.json, but for the tokens and the tied embeddings."""
    if config.get('use_sliding_window'):
        raise ValueError('use_sliding_window is true; only full attention is supported')
    return _with_bias(llama.shape_from_huggingface(config, name))


def spec_from_gguf(fields: dict[str, Any], name: str) -> dict[str, Any]:
    """ModelSpec fields from GGUF metadata, but for the tokens and the tied embeddings."""
    return _with_bias(llama.spec_from_gguf(fields, name))


def _with_bias(spec: dict[str, Any]) -> dict[str, Any]:
    return {**spec, 'attention': replace(spec['attention'], bias=True)}
