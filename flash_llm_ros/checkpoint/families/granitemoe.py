"""The granitemoe family: granite with experts."""

from collections.abc import Iterator

from flash_llm_ros.checkpoint.families.experts import ExpertNames, expert_block, expert_tensors
from flash_llm_ros.checkpoint.families.family import Config, Tensor
from flash_llm_ros.checkpoint.families.granite import Granite
from flash_llm_ros.model_spec import FeedForwardSpec, ModelSpec

# All experts of a layer are in one tensor.
_NAMES = ExpertNames('block_sparse_moe.router.layer', experts='block_sparse_moe.experts',
                     all_gate_up='block_sparse_moe.input_linear.weight',
                     all_down='block_sparse_moe.output_linear.weight')


class GraniteMoe(Granite):

    def feed_forward(self, config: Config) -> FeedForwardSpec:
        return expert_block(config, config['intermediate_size'], normalised=True)

    def block_tensors(self, spec: ModelSpec, layer: int) -> Iterator[Tensor]:
        return expert_tensors(spec, layer, _NAMES)
