"""The stablelm family: llama with layer norms, heads turned in part.

The block may be beside attention.
"""

from dataclasses import replace
from typing import ClassVar

from flash_llm_ros.checkpoint.families.family import Config
from flash_llm_ros.checkpoint.families.llama import Llama
from flash_llm_ros.model_spec import AttentionSpec, NormSpec


class StableLm(Llama):

    defaults: ClassVar[Config] = {'hidden_act': 'silu', 'partial_rotary_factor': 0.25}
    in_part = True
    gguf_interleaves = False

    def attention(self, config: Config) -> AttentionSpec:
        if config.get('qk_layernorm'):
            raise ValueError('qk_layernorm is true; layer norms of each head are not supported')
        return replace(super().attention(config), bias=bool(config.get('use_qkv_bias')))

    def norm(self, config: Config) -> NormSpec:
        return NormSpec('layer', float(config['layer_norm_eps']),
                        parallel=bool(config.get('use_parallel_residual')))
