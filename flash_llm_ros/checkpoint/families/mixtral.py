"""The mixtral family (arXiv 2401.04088): mistral with experts."""

from collections.abc import Iterator
from typing import Any, ClassVar

from flash_llm_ros.checkpoint.families.experts import ExpertNames, expert_block, expert_tensors
from flash_llm_ros.checkpoint.families.family import Config, Tensor
from flash_llm_ros.checkpoint.families.llama import Llama
from flash_llm_ros.checkpoint.families.mistral import Mistral
from flash_llm_ros.model_spec import FeedForwardSpec, ModelSpec

_NAMES = ExpertNames('block_sparse_moe.gate', 'mlp.gate', 'block_sparse_moe.experts',
                     'w1', 'w3', 'w2')


class Mixtral(Mistral):

    defaults: ClassVar[Config] = Llama.defaults
    layers_differ = False
    default_theta = 1e6

    def feed_forward(self, config: Config) -> FeedForwardSpec:
        return expert_block(config, config['intermediate_size'], normalised=True)

    def config_of_gguf(self, fields: dict[str, Any]) -> Config:
        """GGUF has no name of its own for it."""
        config = super().config_of_gguf(fields)
        config['model_type'] = 'mixtral'
        return config

    def block_tensors(self, spec: ModelSpec, layer: int) -> Iterator[Tensor]:
        return expert_tensors(spec, layer, _NAMES)
