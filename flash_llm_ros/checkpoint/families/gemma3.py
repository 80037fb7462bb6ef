"""The gemma3 family (arXiv 2503.19786), text alone.

It is gemma2 with norms of queries and keys in place of caps; five of six layers have a window, and
wavelengths of their own.
"""

from dataclasses import replace
from typing import Any, ClassVar

from flash_llm_ros.checkpoint.families.family import Config
from flash_llm_ros.checkpoint.families.gemma2 import Gemma2
from flash_llm_ros.checkpoint.families.llama import head_dim
from flash_llm_ros.checkpoint.families.rope_scaling import GGUF_SCALE, rotary_positions
from flash_llm_ros.model_spec import PositionSpec


class Gemma3(Gemma2):

    defaults: ClassVar[Config] = {
        **Gemma2.defaults, 'max_position_embeddings': 131_072, 'vocab_size': 262_208,
        'attn_logit_softcapping': None, 'final_logit_softcapping': None}
    caps = ('final_logit_softcapping',)
    default_theta = 1e6
    qk_norm = 'head'
    gguf_largest = 62

    def slides(self, config: Config, layer: int) -> bool:
        return (layer + 1) % config.get('sliding_window_pattern', 6) != 0

    def positions(self, config: Config) -> PositionSpec:
        rope, scaling = config.get('rope_parameters') or {}, config.get('rope_scaling') or {}
        if 'rope_type' in rope or 'rope_theta' in rope:
            raise ValueError(f'rope_parameters is {rope}; it must have full_attention and '
                             'sliding_attention')
        if 'type' in scaling and 'rope_type' not in scaling:
            raise ValueError(f'rope_scaling is {scaling}; transformers passes over type in models '
                             f'of type {config["model_type"]}: rope_type must say it')
        local, full = rope.get('sliding_attention') or {}, rope.get('full_attention') or {}
        full = {**full, **scaling}
        for name, where, kinds in (('sliding_attention', local, ('default',)),
                                   ('full_attention', full, ('default', 'linear'))):
            if where.get('rope_type', 'default') not in kinds:
                raise ValueError(f'rope_parameters of {name} are {where}; their rope_type must be '
                                 f'{" or ".join(kinds)}')
        if (scale := config.get(GGUF_SCALE, 1.0)) != 1:
            raise ValueError(f'{GGUF_SCALE} is {scale}; it must be 1 in models of type '
                             f'{config["model_type"]}')
        theta = local.get('rope_theta') or config.get('rope_local_base_freq') or 10000.0
        everywhere = rotary_positions(config, head_dim(config), full, self.default_theta,
                                      self.in_part)
        return replace(everywhere, local_theta=float(theta))

    def config_of_gguf(self, fields: dict[str, Any]) -> Config:
        """A file that names no window has none."""
        config = super().config_of_gguf(fields)
        config['sliding_window'] = fields.get('gemma3.attention.sliding_window')
        config['sliding_window_pattern'] = fields.get('gemma3.attention.sliding_window_pattern', 6)
        return config
