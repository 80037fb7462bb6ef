"""ProSparse's name for llama with FATReLU (arXiv 2402.13516)."""

from flash_llm_ros.checkpoint.families.llama import (
    GGUF_PERMUTED,
    gguf_name,
    huggingface_name,
    spec_from_gguf,
    spec_from_huggingface,
    tensor_shapes,
)

__all__ = ['GGUF_PERMUTED', 'gguf_name', 'huggingface_name', 'spec_from_gguf',
           'spec_from_huggingface', 'tensor_shapes']
