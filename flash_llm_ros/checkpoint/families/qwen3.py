"""The qwen3 family: llama with a norm of each head of queries and keys."""

from flash_llm_ros.checkpoint.families.family import Config
from flash_llm_ros.checkpoint.families.llama import Llama


class Qwen3(Llama):

    layers_differ = True
    gguf_interleaves = False
    qk_norm = 'head'

    def window(self, config: Config) -> int | None:
        return config.get('sliding_window', 4096) if config.get('use_sliding_window') else None

    def slides(self, config: Config, layer: int) -> bool:
        return layer >= config.get('max_window_layers', 28)
