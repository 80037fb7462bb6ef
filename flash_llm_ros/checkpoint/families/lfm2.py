"""The lfm2 family (arXiv 2511.23404): layers with attention, as qwen3's, or a short convolution."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, ClassVar

from flash_llm_ros.checkpoint.families.family import Config, Tensor, matrix
from flash_llm_ros.checkpoint.families.llama import Llama
from flash_llm_ros.model_spec import (
    AttentionSpec,
    ConvolutionSpec,
    FeedForwardSpec,
    ModelSpec,
    NormSpec,
)

_CONVOLUTION, _ATTENTION = 'conv', 'full_attention'     # of layer_types


class Lfm2(Llama):

    defaults: ClassVar[Config] = {
        'norm_eps': 1e-5, 'conv_L_cache': 3, 'block_auto_adjust_ff_dim': True,
        'block_ffn_dim_multiplier': 1.0, 'block_multiple_of': 256}
    default_theta = 1e6
    gguf_interleaves = False
    tied_by_default = True
    qk_norm = 'head'

    def attention(self, config: Config) -> AttentionSpec:
        return replace(super().attention(config), bias=False, output_bias=False)

    def windows(self, config: Config) -> tuple[int, ...]:
        return ()

    def convolution(self, config: Config) -> ConvolutionSpec | None:
        if config.get('conv_bias'):
            raise ValueError('conv_bias is true; convolutions have no biases here')
        layers = tuple(layer for layer, kind in enumerate(_layer_types(config))
                       if kind == _CONVOLUTION)
        return ConvolutionSpec(layers, config['conv_L_cache']) if layers else None

    def feed_forward(self, config: Config) -> FeedForwardSpec:
        """Its first files have `block_ff_dim`; two thirds of it are neurons."""
        size = config['block_ff_dim' if 'block_ff_dim' in config else 'intermediate_size']
        if config['block_auto_adjust_ff_dim']:
            size = int(2 * size / 3)
            if (factor := config['block_ffn_dim_multiplier']) is not None:
                step = config['block_multiple_of']
                size = -(-int(factor * size) // step) * step
        return FeedForwardSpec(size, 'silu')

    def norm(self, config: Config) -> NormSpec:
        return NormSpec('rms', float(config['norm_eps']))

    def config_of_gguf(self, fields: dict[str, Any]) -> Config:
        """Layers without heads of keys have a convolution; two thirds have been taken already."""
        key = f'{fields["general.architecture"]}.attention.head_count_kv'
        heads = fields[key] if isinstance(fields.get(key), list) else []
        config = super().config_of_gguf({**fields, key: [n for n in heads if n]} if any(heads)
                                        else fields)
        config |= {'norm_eps': config['rms_norm_eps'], 'block_auto_adjust_ff_dim': False,
                   'layer_types': [_ATTENTION if n else _CONVOLUTION for n in heads] or None}
        return config

    def model_tensors(self, spec: ModelSpec) -> Iterator[Tensor]:
        for tensor in super().model_tensors(spec):
            yield (replace(tensor, huggingface='model.embedding_norm.weight',
                           gguf='token_embd_norm.weight') if tensor.name == 'final_norm'
                   else tensor)

    def layer_tensors(self, spec: ModelSpec, layer: int) -> Iterator[Tensor]:
        d, attention = spec.hidden_size, spec.attention
        yield from self._norm('attention_norm', 'operator_norm', 'attn_norm', d, spec)
        if spec.convolves(layer):
            yield from matrix('conv_in', 'conv.in_proj', 'shortconv.in_proj', (3 * d, d))
            yield from matrix('conv', 'conv.conv', 'shortconv.conv', (d, spec.convolution.taps))
            yield from matrix('conv_out', 'conv.out_proj', 'shortconv.out_proj', (d, d))
        else:
            yield from self.qkv(spec)
            for part in 'qk':
                yield from self._norm(f'{part}_norm', f'self_attn.{part}_layernorm',
                                      f'attn_{part}_norm', attention.head_dim, spec)
            yield from matrix('o', 'self_attn.out_proj', 'attn_output', (d, attention.query_width))
        yield from self._norm('ffn_norm', 'ffn_norm', 'ffn_norm', d, spec)
        yield from self.block_tensors(spec, layer)

    def block_tensors(self, spec: ModelSpec, layer: int) -> Iterator[Tensor]:
        wide, narrow = (spec.feed_forward.size, spec.hidden_size), (spec.hidden_size,
                                                                    spec.feed_forward.size)
        for part, name, shape in (('gate', 'w1', wide), ('up', 'w3', wide), ('down', 'w2', narrow)):
            yield from matrix(part, f'feed_forward.{name}', f'ffn_{part}', shape)


def _layer_types(config: Config) -> list[str]:
    """Of each layer; ValueError for one that there is no door for."""
    named = config.get('layer_types')
    if named is None:
        layers = range(config['num_hidden_layers'])
        attention = layers if (some := config.get('full_attn_idxs')) is None else some
        return [_ATTENTION if layer in attention else _CONVOLUTION for layer in layers]
    if unknown := set(named) - {_ATTENTION, _CONVOLUTION}:
        raise ValueError(f'layer_types has {min(unknown)}; only {_ATTENTION} and {_CONVOLUTION} '
                         'are supported')
    return named
