"""The minicpm family (arXiv 2404.06395): llama with three scale factors beside its weights."""

from typing import Any

from flash_llm_ros.checkpoint.families.family import Config
from flash_llm_ros.checkpoint.families.llama import Llama
from flash_llm_ros.checkpoint.weight_scales import WeightScales, positive


class MiniCpm(Llama):

    def scales(self, config: Config) -> WeightScales:
        embedding, depth, width = (positive(config, key)
                                   for key in ('scale_emb', 'scale_depth', 'dim_model_base'))
        return WeightScales(embedding, depth / config['num_hidden_layers'] ** 0.5,
                            width / config['hidden_size'])

    def config_of_gguf(self, fields: dict[str, Any]) -> Config:
        """The first MiniCPM files have no scales; all these models had 12, 1.4 and 256."""
        config = super().config_of_gguf(fields)
        depth, hidden = config['num_hidden_layers'] ** 0.5, config['hidden_size']
        config['scale_emb'] = positive(fields, 'minicpm.embedding_scale', 12.0)
        config['scale_depth'] = positive(fields, 'minicpm.residual_scale', 1.4 / depth) * depth
        config['dim_model_base'] = hidden / positive(fields, 'minicpm.logit_scale', hidden / 256)
        return config
