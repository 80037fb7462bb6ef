"""The phi3 family (arXiv 2404.14219): mistral whose q, k and v are one matrix, and gate and up."""

from collections.abc import Iterator
from typing import ClassVar

from flash_llm_ros.checkpoint.families.family import Config, Tensor, parts
from flash_llm_ros.checkpoint.families.llama import Llama, head_dim
from flash_llm_ros.checkpoint.families.mistral import Mistral
from flash_llm_ros.checkpoint.families.rope_scaling import rope_settings, rotary_positions
from flash_llm_ros.model_spec import ModelSpec, PositionSpec


class Phi3(Mistral):

    defaults: ClassVar[Config] = {**Llama.defaults, 'original_max_position_embeddings': 4096}
    layers_differ = False
    in_part = True

    def positions(self, config: Config) -> PositionSpec:
        """Its first files have other names for the one way of scaling that it knows."""
        rope = rope_settings(config)
        kind = rope.get('rope_type') or rope.get('type') or 'default'
        if kind in ('su', 'yarn'):
            rope = {**rope, 'rope_type': 'longrope'}
        elif kind not in ('default', 'longrope'):
            raise ValueError(f'rope scaling {kind!r} is none of this family, which has longrope')
        return rotary_positions(config, head_dim(config), rope, self.default_theta, self.in_part)

    def qkv(self, spec: ModelSpec) -> Iterator[Tensor]:
        q, kv = spec.attention.query_width, spec.attention.kv_width
        return parts({'q': q, 'k': kv, 'v': kv}, 'self_attn.qkv_proj', 'attn_qkv',
                     spec.hidden_size)

    def gate_up(self, spec: ModelSpec) -> Iterator[Tensor]:
        neurons = spec.feed_forward.size
        return parts({'gate': neurons, 'up': neurons}, 'mlp.gate_up_proj', 'ffn_up',
                     spec.hidden_size)
