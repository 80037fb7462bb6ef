"""The nemotron family (arXiv 2402.16819): arcee with layer norms, heads turned in part."""

from typing import ClassVar

from flash_llm_ros.checkpoint.families.arcee import Arcee
from flash_llm_ros.checkpoint.families.family import Config
from flash_llm_ros.model_spec import NormSpec


class Nemotron(Arcee):

    defaults: ClassVar[Config] = {'hidden_act': 'relu2', 'partial_rotary_factor': 0.5}
    in_part = True
    gguf_interleaves = False
    norm_plus = 1.0

    def norm(self, config: Config) -> NormSpec:
        return NormSpec('layer', float(config['norm_eps']))
