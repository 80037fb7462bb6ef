"""The dots1 family: qwen3 with DeepSeek-V3's experts."""

from collections.abc import Iterator
from typing import Any

from flash_llm_ros.checkpoint.families.experts import (
    ExpertNames,
    check_sigmoid,
    deepseek_block,
    expert_tensors,
)
from flash_llm_ros.checkpoint.families.family import Config, Tensor
from flash_llm_ros.checkpoint.families.qwen3 import Qwen3
from flash_llm_ros.model_spec import FeedForwardSpec, ModelSpec


class Dots1(Qwen3):

    def window(self, config: Config) -> int | None:
        return config.get('sliding_window', 4096)

    def slides(self, config: Config, layer: int) -> bool:
        return layer >= config.get('max_window_layers', 62)

    def feed_forward(self, config: Config) -> FeedForwardSpec:
        return deepseek_block(config)

    def config_of_gguf(self, fields: dict[str, Any]) -> Config:
        config = super().config_of_gguf(fields)
        check_sigmoid(config)
        return config

    def block_tensors(self, spec: ModelSpec, layer: int) -> Iterator[Tensor]:
        return expert_tensors(spec, layer, ExpertNames())
