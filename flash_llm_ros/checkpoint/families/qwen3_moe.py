"""The qwen3_moe family (arXiv 2505.09388): qwen3 with experts."""

from collections.abc import Iterator
from typing import Any

from flash_llm_ros.checkpoint.families.experts import (
    ExpertNames,
    dense_layers,
    expert_block,
    expert_tensors,
)
from flash_llm_ros.checkpoint.families.family import Config, Tensor
from flash_llm_ros.checkpoint.families.qwen3 import Qwen3
from flash_llm_ros.model_spec import FeedForwardSpec, ModelSpec


class Qwen3Moe(Qwen3):

    layers_differ = False

    def slides(self, config: Config, layer: int) -> bool:
        """All layers, whatever max_window_layers says."""
        return True

    def feed_forward(self, config: Config) -> FeedForwardSpec:
        dense = dense_layers(config)
        return expert_block(config, config['moe_intermediate_size'],
                            config.get('norm_topk_prob', False), dense_layers=dense,
                            dense_size=config['intermediate_size'] if dense else 0)

    def config_of_gguf(self, fields: dict[str, Any]) -> Config:
        """Its files do not say that weights are normalised; those of all such models are."""
        config = super().config_of_gguf(fields)
        config |= {'model_type': 'qwen3_moe', 'norm_topk_prob': True}
        return config

    def block_tensors(self, spec: ModelSpec, layer: int) -> Iterator[Tensor]:
        return expert_tensors(spec, layer, ExpertNames())
