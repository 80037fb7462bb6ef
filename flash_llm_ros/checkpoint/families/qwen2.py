"""The qwen2 family: llama with biases on the queries, keys and values."""

from flash_llm_ros.checkpoint.families.family import Config
from flash_llm_ros.checkpoint.families.llama import Llama
from flash_llm_ros.model_spec import AttentionSpec


class Qwen2(Llama):

    biased_attention = True
    gguf_interleaves = False

    def attention(self, config: Config) -> AttentionSpec:
        if config.get('use_sliding_window'):
            raise ValueError('use_sliding_window is true; only full attention is supported')
        return super().attention(config)
