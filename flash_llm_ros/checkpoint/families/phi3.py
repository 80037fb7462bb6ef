"""The phi3 family (arXiv 2404.14219): mistral whose q, k and v are one matrix, and gate and up."""

from collections.abc import Iterator
from typing import ClassVar

from flash_llm_ros.checkpoint.families.family import Config, Tensor, parts
from flash_llm_ros.checkpoint.families.llama import Llama
from flash_llm_ros.checkpoint.families.mistral import Mistral
from flash_llm_ros.model_spec import ModelSpec


class Phi3(Mistral):

    defaults: ClassVar[Config] = Llama.defaults

    def qkv(self, spec: ModelSpec) -> Iterator[Tensor]:
        q, kv = spec.attention.query_width, spec.attention.kv_width
        return parts({'q': q, 'k': kv, 'v': kv}, 'self_attn.qkv_proj', 'attn_qkv',
                     spec.hidden_size)

    def gate_up(self, spec: ModelSpec) -> Iterator[Tensor]:
        neurons = spec.feed_forward.size
        return parts({'gate': neurons, 'up': neurons}, 'mlp.gate_up_proj', 'ffn_up',
                     spec.hidden_size)
