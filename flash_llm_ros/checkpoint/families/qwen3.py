"""The qwen3 family: llama with a norm of each head of queries and keys."""

from flash_llm_ros.checkpoint.families.family import Config
from flash_llm_ros.checkpoint.families.llama import Llama


class Qwen3(Llama):

    gguf_interleaves = False
    qk_norm = 'head'

    def slides(self, config: Config, layer: int) -> bool:
        return bool(config.get('use_sliding_window')) and layer >= config['max_window_layers']
