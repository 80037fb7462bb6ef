"""The mistral family: llama whose layers may all look back on a window only."""

from typing import ClassVar

from flash_llm_ros.checkpoint.families.family import Config
from flash_llm_ros.checkpoint.families.llama import Llama


class Mistral(Llama):

    defaults: ClassVar[Config] = {**Llama.defaults, 'sliding_window': 4096}
    layers_differ = True                # as ministral's, which it then is for transformers

    def slides(self, config: Config, layer: int) -> bool:
        return True
