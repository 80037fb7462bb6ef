"""Ministral 3, text alone: mistral whose queries grow with their position, beyond a length."""

from typing import Any, ClassVar

from flash_llm_ros.checkpoint.families.family import Config
from flash_llm_ros.checkpoint.families.llama import Llama
from flash_llm_ros.checkpoint.families.mistral import Mistral
from flash_llm_ros.checkpoint.families.rope_scaling import rope_settings


class Mistral3(Mistral):

    defaults: ClassVar[Config] = Llama.defaults

    def config_of_gguf(self, fields: dict[str, Any]) -> Config:
        config = super().config_of_gguf(fields)
        growth = fields.get(f'{fields["general.architecture"]}.attention.temperature_scale')
        config['rope_scaling']['llama_4_scaling_beta'] = growth
        return config

    def max_context(self, config: Config) -> int:
        """Up to where queries stay as they are."""
        rope, longest = rope_settings(config), super().max_context(config)
        if not rope.get('llama_4_scaling_beta'):
            return longest
        return min(longest, int(rope['original_max_position_embeddings']))
