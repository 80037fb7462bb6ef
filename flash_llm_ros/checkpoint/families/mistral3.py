"""Ministral 3, text alone: mistral whose queries grow with their position, beyond a length."""

from typing import Any, ClassVar

from flash_llm_ros.checkpoint.families.family import Config
from flash_llm_ros.checkpoint.families.llama import Llama
from flash_llm_ros.checkpoint.families.mistral import Mistral
from flash_llm_ros.checkpoint.families.rope_scaling import rope_settings, trained_context
from flash_llm_ros.model_spec import PositionSpec


class Mistral3(Mistral):

    defaults: ClassVar[Config] = Llama.defaults
    layers_differ = False

    def config_of_gguf(self, fields: dict[str, Any]) -> Config:
        config = super().config_of_gguf(fields)
        growth = f'{fields["general.architecture"]}.attention.temperature_scale'
        config['rope_scaling']['llama_4_scaling_beta'] = fields.get(growth, 0.0)
        return config

    def positions(self, config: Config) -> PositionSpec:
        if rope_settings(config).get('llama_4_scaling_beta') is None:
            raise ValueError('rope_parameters has no llama_4_scaling_beta, by which queries grow; '
                             'it must be a number')
        return super().positions(config)

    def max_context(self, config: Config) -> int:
        """Up to where queries stay as they are."""
        rope, longest = rope_settings(config), super().max_context(config)
        if not rope.get('llama_4_scaling_beta'):
            return longest
        return min(longest, trained_context(rope, config))
