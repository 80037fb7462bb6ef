"""The olmo2 family (arXiv 2501.00656).

It is llama with norms of what attention and block give, and of queries and keys over their whole
width.
"""

from typing import Any

from flash_llm_ros.checkpoint.families.family import Config
from flash_llm_ros.checkpoint.families.llama import Llama
from flash_llm_ros.model_spec import NormSpec


class Olmo2(Llama):

    gguf_interleaves = False
    qk_norm = 'width'

    def config_of_gguf(self, fields: dict[str, Any]) -> Config:
        if window := fields.get('olmo2.attention.sliding_window'):
            raise ValueError(f'olmo2.attention.sliding_window is {window}; OLMo 3 is not supported')
        return super().config_of_gguf(fields)

    def norm(self, config: Config) -> NormSpec:
        return NormSpec('rms', float(config['rms_norm_eps']), first=False, output=True)
