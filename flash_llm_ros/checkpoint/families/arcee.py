"""The arcee family: llama whose block has no gate and a squared ReLU."""

from typing import ClassVar

from flash_llm_ros.checkpoint.families.family import Config
from flash_llm_ros.checkpoint.families.llama import Llama


class Arcee(Llama):

    defaults: ClassVar[Config] = {'hidden_act': 'relu2'}
    gated = False
