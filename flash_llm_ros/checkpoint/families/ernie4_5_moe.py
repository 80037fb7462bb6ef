"""The ernie4_5_moe family: llama with experts, chosen by corrected shares."""

from collections.abc import Iterator
from typing import Any

from flash_llm_ros.checkpoint.families.experts import ExpertNames, expert_block, expert_tensors
from flash_llm_ros.checkpoint.families.family import Config, Tensor
from flash_llm_ros.checkpoint.families.llama import Llama
from flash_llm_ros.checkpoint.weight_scales import positive
from flash_llm_ros.model_spec import FeedForwardSpec, ModelSpec

_NAMES = ExpertNames(correction='mlp.moe_statics.e_score_correction_bias',
                     correction_now='mlp.gate.moe_statics.e_score_correction_bias')


class Ernie45Moe(Llama):

    default_theta = 500000.0
    huggingface_interleaves = True
    tied_by_default = True

    def feed_forward(self, config: Config) -> FeedForwardSpec:
        if config.get('use_bias'):
            raise ValueError('use_bias is true; a block with a gate has no biases here')
        if (interval := config.get('moe_layer_interval') or 1) != 1:
            raise ValueError(f'moe_layer_interval is {interval}; it must be 1: only the first '
                             'layers may be without experts')
        last, layers = config.get('moe_layer_end_index', -1), config['num_hidden_layers']
        if last not in (-1, layers - 1):
            raise ValueError(f'moe_layer_end_index is {last}; it must be the last of {layers} '
                             'layers: only the first ones may be without experts')
        size = config['moe_intermediate_size']
        active, also = config.get('num_experts_per_tok'), config.get('moe_k')
        if None not in (active, also) and active != also:
            raise ValueError(f'num_experts_per_tok is {active} and moe_k is {also}; one of them '
                             'must go')
        if 'moe_k' in config:           # config.json's names of what others call otherwise
            config = {**config, 'num_experts_per_tok': config['moe_k'],
                      'first_k_dense_replace': config.get('moe_layer_start_index', 1),
                      'shared_expert_intermediate_size':
                          size * config.get('moe_num_shared_experts', 2)}
        dense = config['first_k_dense_replace']
        return expert_block(config, size, normalised=True, corrected=True, sum_clamped=True,
                            least_sum=positive(config, 'moe_norm_min', 1e-12),
                            shared=config['shared_expert_intermediate_size'],
                            dense_layers=dense,
                            dense_size=config['intermediate_size'] if dense else 0)

    def config_of_gguf(self, fields: dict[str, Any]) -> Config:
        config = super().config_of_gguf(fields)
        config['model_type'] = 'ernie4_5_moe'
        return config

    def block_tensors(self, spec: ModelSpec, layer: int) -> Iterator[Tensor]:
        return expert_tensors(spec, layer, _NAMES)
