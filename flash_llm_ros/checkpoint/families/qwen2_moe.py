"""The qwen2_moe family: qwen2 with experts, and a block beside them that every token uses."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from flash_llm_ros.checkpoint.families.experts import (
    ExpertNames,
    dense_layers,
    expert_block,
    expert_tensors,
)
from flash_llm_ros.checkpoint.families.family import Config, Tensor
from flash_llm_ros.checkpoint.families.qwen2 import Qwen2
from flash_llm_ros.model_spec import AttentionSpec, FeedForwardSpec, ModelSpec

_NAMES = ExpertNames(shared='mlp.shared_expert')


class Qwen2Moe(Qwen2):

    layers_differ = False

    def attention(self, config: Config) -> AttentionSpec:
        return replace(super().attention(config), bias=config.get('qkv_bias', True))

    def window(self, config: Config) -> int | None:
        if config.get('use_sliding_window'):
            raise ValueError('use_sliding_window is true; it must be false in models of type '
                             'qwen2_moe')
        return None

    def feed_forward(self, config: Config) -> FeedForwardSpec:
        dense = dense_layers(config)
        return expert_block(config, config['moe_intermediate_size'],
                            bool(config.get('norm_topk_prob')),
                            shared=config['shared_expert_intermediate_size'], shared_weighed=True,
                            dense_layers=dense,
                            dense_size=config['intermediate_size'] if dense else 0)

    def config_of_gguf(self, fields: dict[str, Any]) -> Config:
        config = super().config_of_gguf(fields)
        config['model_type'] = 'qwen2_moe'
        return config

    def block_tensors(self, spec: ModelSpec, layer: int) -> Iterator[Tensor]:
        return expert_tensors(spec, layer, _NAMES)
