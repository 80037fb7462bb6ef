"""The qwen2 family: llama with biases on the queries, keys and values."""

from dataclasses import replace

from flash_llm_ros.checkpoint.families.family import Config
from flash_llm_ros.checkpoint.families.llama import Llama
from flash_llm_ros.model_spec import AttentionSpec


class Qwen2(Llama):

    layers_differ = True
    gguf_interleaves = False

    def attention(self, config: Config) -> AttentionSpec:
        return replace(super().attention(config), bias=True, output_bias=False)

    def window(self, config: Config) -> int | None:
        return config.get('sliding_window', 4096) if config.get('use_sliding_window') else None

    def slides(self, config: Config, layer: int) -> bool:
        return layer >= config.get('max_window_layers', 28)
