"""The gemma3 family (arXiv 2503.19786), text alone: gemma2 with norms of queries and keys in place
of caps; five of six layers have a window, and wavelengths of their own.
"""

from dataclasses import replace
from typing import ClassVar

from flash_llm_ros.checkpoint.families.family import Config
from flash_llm_ros.checkpoint.families.gemma2 import Gemma2
from flash_llm_ros.checkpoint.families.llama import head_dim
from flash_llm_ros.checkpoint.families.rope_scaling import rope_settings, rotary_positions
from flash_llm_ros.model_spec import PositionSpec


class Gemma3(Gemma2):

    defaults: ClassVar[Config] = {
        **Gemma2.defaults, 'max_position_embeddings': 131_072, 'vocab_size': 262_208,
        'attn_logit_softcapping': None, 'final_logit_softcapping': None}
    qk_norm = 'head'
    gguf_largest = 62

    def slides(self, config: Config, layer: int) -> bool:
        every = config.get('sliding_window_pattern') or config.get('_sliding_window_pattern') or 6
        return (layer + 1) % every != 0

    def positions(self, config: Config) -> PositionSpec:
        rope = rope_settings(config)
        local = rope.get('sliding_attention') or {}
        if local.get('rope_type', 'default') != 'default':
            raise ValueError(f'rope_parameters of sliding_attention are {local}; their rope_type '
                             'must be default')
        theta = local.get('rope_theta') or config.get('rope_local_base_freq') or 10000.0
        everywhere = rotary_positions(config, head_dim(config), rope.get('full_attention', rope),
                                      default_theta=1e6)
        return replace(everywhere, local_theta=float(theta))
