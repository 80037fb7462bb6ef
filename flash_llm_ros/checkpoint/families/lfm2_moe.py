"""The lfm2_moe family: lfm2 with experts behind the first layers, chosen by corrected sigmoids."""

from collections.abc import Iterator
from typing import Any, ClassVar

from flash_llm_ros.checkpoint.families.experts import (
    ExpertNames,
    check_sigmoid,
    expert_block,
    expert_tensors,
)
from flash_llm_ros.checkpoint.families.family import Config, Tensor
from flash_llm_ros.checkpoint.families.lfm2 import Lfm2
from flash_llm_ros.checkpoint.weight_scales import positive
from flash_llm_ros.model_spec import FeedForwardSpec, ModelSpec

_NAMES = ExpertNames('feed_forward.gate', experts='feed_forward.experts', gate='w1', up='w3',
                     down='w2', all_gate_up='feed_forward.experts.gate_up_proj',
                     all_down='feed_forward.experts.down_proj',
                     correction='feed_forward.expert_bias', dense='feed_forward')


class Lfm2Moe(Lfm2):

    defaults: ClassVar[Config] = {
        'norm_eps': 1e-5, 'conv_L_cache': 3, 'num_dense_layers': 2, 'num_experts': 32,
        'num_experts_per_tok': 4, 'use_expert_bias': True, 'norm_topk_prob': True}

    def feed_forward(self, config: Config) -> FeedForwardSpec:
        dense = config['num_dense_layers']
        return expert_block(
            {**config, 'hidden_act': 'silu'}, config['moe_intermediate_size'],
            bool(config['norm_topk_prob']), shares='sigmoid',
            corrected=bool(config['use_expert_bias']),
            scale=positive(config, 'routed_scaling_factor', 1.0), least_sum=1e-6,
            dense_layers=dense, dense_size=config['intermediate_size'] if dense else 0)

    def config_of_gguf(self, fields: dict[str, Any]) -> Config:
        config = super().config_of_gguf(fields)
        check_sigmoid(config)
        config |= {'model_type': 'lfm2_moe', 'norm_topk_prob': True,
                   'num_dense_layers': config['first_k_dense_replace']}
        return config

    def block_tensors(self, spec: ModelSpec, layer: int) -> Iterator[Tensor]:
        return expert_tensors(spec, layer, _NAMES)
