"""The qwen2 family: llama with biases on the queries, keys and values."""

from dataclasses import replace

from flash_llm_ros.checkpoint.families.family import Config
from flash_llm_ros.checkpoint.families.llama import Llama
from flash_llm_ros.model_spec import AttentionSpec


class Qwen2(Llama):

    gguf_interleaves = False

    def attention(self, config: Config) -> AttentionSpec:
        return replace(super().attention(config), bias=True, output_bias=False)

    def slides(self, config: Config, layer: int) -> bool:
        return bool(config.get('use_sliding_window')) and layer >= config['max_window_layers']
