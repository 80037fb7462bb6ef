"""The granitemoe family: granite with experts."""

from collections.abc import Iterator

from flash_llm_ros.checkpoint.families.experts import expert_block, expert_tensors
from flash_llm_ros.checkpoint.families.family import Config, Tensor
from flash_llm_ros.checkpoint.families.granite import Granite
from flash_llm_ros.model_spec import FeedForwardSpec, ModelSpec


class GraniteMoe(Granite):

    def feed_forward(self, config: Config) -> FeedForwardSpec:
        return expert_block(config, config['intermediate_size'], normalised=True)

    def block_tensors(self, spec: ModelSpec) -> Iterator[Tensor]:
        """Folders have all experts of a layer in one tensor."""
        return expert_tensors(spec, 'block_sparse_moe.router.layer', 'block_sparse_moe.experts',
                              ('gate_proj', 'up_proj', 'down_proj'),
                              ('block_sparse_moe.input_linear.weight',
                               'block_sparse_moe.output_linear.weight'))
