"""The smollm3 family: llama where every fourth layer has no positions."""

from dataclasses import replace

from flash_llm_ros.checkpoint.families.family import Config
from flash_llm_ros.checkpoint.families.llama import Llama
from flash_llm_ros.model_spec import PositionSpec


class SmolLm3(Llama):

    tied_by_default = True
    default_theta = 2e6
    layers_differ = True

    def slides(self, config: Config, layer: int) -> bool:
        return bool(config.get('use_sliding_window')) and layer in self._skipped(config)

    def positions(self, config: Config) -> PositionSpec:
        return replace(super().positions(config), skipped=self._skipped(config))

    def _skipped(self, config: Config) -> tuple[int, ...]:
        layers, every = config['num_hidden_layers'], config.get('no_rope_layer_interval', 4)
        turned = config.get('no_rope_layers') or [(layer + 1) % every for layer in range(layers)]
        return tuple(layer for layer, turns in enumerate(turned) if not turns)
