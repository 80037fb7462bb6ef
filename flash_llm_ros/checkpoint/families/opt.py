"""The OPT family: layer norms, learned positions, biases, a feed-forward block without gate."""

from collections.abc import Iterator
from typing import Any

from flash_llm_ros.checkpoint.families.family import Config, Family, Tensor, matrix, norm
from flash_llm_ros.model_spec import (
    AttentionSpec,
    FeedForwardSpec,
    ModelSpec,
    NormSpec,
    PositionSpec,
)


class Opt(Family):

    huggingface_layers = 'model.decoder.layers'
    tied_by_default = True

    def attention(self, config: Config) -> AttentionSpec:
        hidden, heads = config['hidden_size'], config['num_attention_heads']
        if (width := config.get('word_embed_proj_dim') or hidden) != hidden:
            raise ValueError(f'word_embed_proj_dim is {width}; only models whose embeddings are as '
                             f'wide as their layers ({hidden}) are supported')
        bias = config.get('enable_bias', True)
        return AttentionSpec(heads, heads, hidden // heads, bias, bias)

    def feed_forward(self, config: Config) -> FeedForwardSpec:
        return FeedForwardSpec(config['ffn_dim'], config.get('activation_function', 'relu'),
                               gated=False, bias=config.get('enable_bias', True))

    def norm(self, config: Config) -> NormSpec:
        if config.get('_remove_final_layer_norm'):
            raise ValueError('_remove_final_layer_norm is true; it must be false')
        if not config.get('layer_norm_elementwise_affine', True):
            raise ValueError('layer_norm_elementwise_affine is false; norms must have weights')
        return NormSpec('layer', 1e-5, config.get('do_layer_norm_before', True))

    def positions(self, config: Config) -> PositionSpec:
        return PositionSpec('learned', offset=2)

    def config_of_gguf(self, fields: dict[str, Any]) -> Config:
        raise ValueError('OPT is read from Hugging Face folders only')

    def model_tensors(self, spec: ModelSpec) -> Iterator[Tensor]:
        d, vocabulary = spec.hidden_size, (spec.embedding.vocab_size, spec.hidden_size)
        places = spec.max_context + spec.positions.offset
        yield from matrix('embedding', 'model.decoder.embed_tokens', '', vocabulary)
        yield from matrix('positions', 'model.decoder.embed_positions', '', (places, d))
        if spec.norm.first:
            yield from norm('final_norm', 'model.decoder.final_layer_norm', '', d, spec.norm)
        if not spec.embedding.tied:
            yield from matrix('head', 'lm_head', '', vocabulary)

    def layer_tensors(self, spec: ModelSpec, layer: int) -> Iterator[Tensor]:
        d, neurons, bias = spec.hidden_size, spec.feed_forward.size, spec.feed_forward.bias
        yield from norm('attention_norm', 'self_attn_layer_norm', '', d, spec.norm)
        yield from matrix('q', 'self_attn.q_proj', '', (d, d), spec.attention.bias)
        yield from matrix('k', 'self_attn.k_proj', '', (d, d), spec.attention.bias)
        yield from matrix('v', 'self_attn.v_proj', '', (d, d), spec.attention.bias)
        yield from matrix('o', 'self_attn.out_proj', '', (d, d), spec.attention.output_bias)
        yield from norm('ffn_norm', 'final_layer_norm', '', d, spec.norm)
        yield from matrix('up', 'fc1', '', (neurons, d), bias)
        yield from matrix('down', 'fc2', '', (d, neurons), bias)
