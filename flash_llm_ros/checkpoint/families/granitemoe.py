"""The granitemoe family: granite with experts, of granitemoeshared beside a block of each token."""

from collections.abc import Iterator
from typing import Any

from flash_llm_ros.checkpoint.families.experts import ExpertNames, expert_block, expert_tensors
from flash_llm_ros.checkpoint.families.family import Config, Tensor
from flash_llm_ros.checkpoint.families.granite import Granite
from flash_llm_ros.model_spec import FeedForwardSpec, ModelSpec

# All experts of a layer are in one tensor.
_NAMES = ExpertNames('block_sparse_moe.router.layer', experts='block_sparse_moe.experts',
                     all_gate_up='block_sparse_moe.input_linear.weight',
                     all_down='block_sparse_moe.output_linear.weight',
                     shared='shared_mlp', shared_gate_up='input_linear', down='output_linear')


class GraniteMoe(Granite):

    def feed_forward(self, config: Config) -> FeedForwardSpec:
        return expert_block(config, config['intermediate_size'], normalised=True)

    def block_tensors(self, spec: ModelSpec, layer: int) -> Iterator[Tensor]:
        return expert_tensors(spec, layer, _NAMES)


class GraniteMoeShared(GraniteMoe):

    def feed_forward(self, config: Config) -> FeedForwardSpec:
        return expert_block(config, config['intermediate_size'], normalised=True,
                            shared=config.get('shared_intermediate_size', 0))

    def config_of_gguf(self, fields: dict[str, Any]) -> Config:
        config = super().config_of_gguf(fields)
        config |= {'model_type': 'granitemoeshared',
                   'shared_intermediate_size': config['shared_expert_intermediate_size']}
        return config
