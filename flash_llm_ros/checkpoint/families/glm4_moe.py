"""The glm4_moe family (arXiv 2508.06471): half-turned heads, DeepSeek-V3's experts.

What predicts the token after the next lies behind the layers, and is not read.
"""

from collections.abc import Iterator
from dataclasses import replace
import re
from typing import Any, ClassVar

from flash_llm_ros.checkpoint.families.experts import (
    ExpertNames,
    check_sigmoid,
    deepseek_block,
    expert_tensors,
)
from flash_llm_ros.checkpoint.families.family import Config, Tensor
from flash_llm_ros.checkpoint.families.llama import Llama
from flash_llm_ros.model_spec import AttentionSpec, FeedForwardSpec, ModelSpec

_LAYER = re.compile(r'(?:model\.layers|blk)\.(\d+)\..*')


class Glm4Moe(Llama):

    defaults: ClassVar[Config] = {**Llama.defaults, 'partial_rotary_factor': 0.5,
                                  'norm_topk_prob': True}
    in_part = True
    gguf_interleaves = False
    gguf_before_ffn = 'post_attention_norm'

    def attention(self, config: Config) -> AttentionSpec:
        biased = config.get('use_qkv_bias', config.get('attention_bias', False))
        return replace(super().attention(config), bias=bool(biased), output_bias=False,
                       qk_norm='head' if config.get('use_qk_norm') else 'none')

    def feed_forward(self, config: Config) -> FeedForwardSpec:
        return deepseek_block(config)

    def config_of_gguf(self, fields: dict[str, Any]) -> Config:
        # What leaves that out has other weights than a config.json that does.
        config = super().config_of_gguf({'glm4moe.expert_weights_norm': False, **fields})
        check_sigmoid(config)
        config['model_type'] = 'glm4_moe'
        config['num_hidden_layers'] -= config.get('num_nextn_predict_layers', 0)
        return config

    def elsewhere(self, name: str, spec: ModelSpec) -> bool:
        match = _LAYER.fullmatch(name)
        return (super().elsewhere(name, spec)
                or (match is not None and int(match[1]) >= spec.layers))

    def block_tensors(self, spec: ModelSpec, layer: int) -> Iterator[Tensor]:
        return expert_tensors(spec, layer, ExpertNames())
