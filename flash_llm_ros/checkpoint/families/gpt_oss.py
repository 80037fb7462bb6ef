"""The gpt_oss family (arXiv 2508.10925): sinks in attention, experts with biases.

Rows of gate and up take turns in Hugging Face's files, which have them in MXFP4 or turned.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, ClassVar

from flash_llm_ros.checkpoint.families.experts import expert_block
from flash_llm_ros.checkpoint.families.family import Config, Tensor, matrix
from flash_llm_ros.checkpoint.families.llama import Llama
from flash_llm_ros.model_spec import AttentionSpec, FeedForwardSpec, ModelSpec, PositionSpec

_SWIGLU = {'swiglu_alpha': 1.702, 'swiglu_limit': 7.0}      # as the core has it
_EXPERTS = 'mlp.experts'
_ROPE = {'rope_type': 'yarn', 'factor': 32.0, 'truncate': False,
         'original_max_position_embeddings': 4096}          # where config.json says nothing


class GptOss(Llama):

    defaults: ClassVar[Config] = {**Llama.defaults, 'attention_bias': True, 'sliding_window': 128}
    default_theta = 150000.0
    layers_differ = True
    gguf_interleaves = False
    gguf_before_ffn = 'post_attention_norm'

    def attention(self, config: Config) -> AttentionSpec:
        return replace(super().attention(config), sinks=True)

    def slides(self, config: Config, layer: int) -> bool:
        return layer % 2 == 0

    def feed_forward(self, config: Config) -> FeedForwardSpec:
        for name, value in _SWIGLU.items():
            if (found := config.get(name, value)) != value:
                raise ValueError(f'{name} is {found}; it must be {value}')
        return expert_block({**config, 'hidden_act': 'clamped_swiglu'},
                            config['intermediate_size'], normalised=True, biased=True)

    def positions(self, config: Config) -> PositionSpec:
        if not (config.get('rope_parameters') or config.get('rope_scaling')):
            config = {**config, 'rope_scaling': _ROPE}
        return super().positions(config)

    def config_of_gguf(self, fields: dict[str, Any]) -> Config:
        """Files do not say that the ramp of YaRN is not truncated; that of all such models is not.
        """
        config = super().config_of_gguf(fields)
        config |= {'model_type': 'gpt_oss', 'intermediate_size': config['moe_intermediate_size']}
        config['rope_scaling']['truncate'] = False
        return config

    def qkv(self, spec: ModelSpec) -> Iterator[Tensor]:
        yield from super().qkv(spec)
        yield Tensor('sinks', 'self_attn.sinks', 'attn_sinks.weight', (spec.attention.heads,))

    def block_tensors(self, spec: ModelSpec, layer: int) -> Iterator[Tensor]:
        d, neurons = spec.hidden_size, spec.feed_forward.size
        count = spec.feed_forward.experts.count
        yield from matrix('router', 'mlp.router', 'ffn_gate_inp', (count, d), bias=True)
        both, down = f'{_EXPERTS}.gate_up_proj', f'{_EXPERTS}.down_proj'
        for part, name, shape, where in (('gate', both, (neurons, d), (0, 2 * neurons, 2)),
                                         ('up', both, (neurons, d), (1, 2 * neurons, 2)),
                                         ('down', down, (d, neurons), (0, d, 1))):
            yield Tensor(f'expert_{part}', name, f'ffn_{part}_exps.weight', (count, *shape), 0,
                         name, *where, fused_turned=True)
            yield Tensor(f'expert_{part}_bias', f'{name}_bias', f'ffn_{part}_exps.bias',
                         (count, shape[0]), 0, f'{name}_bias', *where)
