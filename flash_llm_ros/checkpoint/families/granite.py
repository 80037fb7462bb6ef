"""The granite family: llama with four factors beside its weights."""

from typing import Any

from flash_llm_ros.checkpoint.families.family import Config
from flash_llm_ros.checkpoint.families.llama import Llama, head_dim
from flash_llm_ros.checkpoint.weight_scales import WeightScales, positive


class Granite(Llama):

    def scales(self, config: Config) -> WeightScales:
        embedding, residual, attention, logits = (
            positive(config, key, 1.0) for key in
            ('embedding_multiplier', 'residual_multiplier', 'attention_multiplier',
             'logits_scaling'))
        return WeightScales(embedding, residual, 1 / logits,
                            query=attention * head_dim(config) ** 0.5)

    def config_of_gguf(self, fields: dict[str, Any]) -> Config:
        config = super().config_of_gguf(fields)
        config.setdefault('attention_multiplier', head_dim(config) ** -0.5)
        return config
