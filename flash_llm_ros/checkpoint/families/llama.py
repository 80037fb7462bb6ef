"""The llama family: RMS norms, rotary grouped-query attention, gated feed-forward block."""

from collections.abc import Iterator

from flash_llm_ros.checkpoint.families.family import Config, Family, Tensor, matrix, norm
from flash_llm_ros.checkpoint.families.rope_scaling import rope_factors, rope_settings
from flash_llm_ros.model_spec import (
    AttentionSpec,
    FeedForwardSpec,
    ModelSpec,
    NormSpec,
    PositionSpec,
)


class Llama(Family):

    biased_attention = False            # on queries, keys and values
    gguf_interleaves = True             # the rows of q and k

    def attention(self, config: Config) -> AttentionSpec:
        if config.get('attention_bias') and not self.biased_attention:
            raise ValueError('attention_bias is true; the llama family here has no biases')
        heads = config['num_attention_heads']
        return AttentionSpec(heads, config.get('num_key_value_heads') or heads, _head_dim(config),
                             bias=self.biased_attention)

    def feed_forward(self, config: Config) -> FeedForwardSpec:
        if config.get('mlp_bias'):
            raise ValueError('mlp_bias is true; the llama family here has no biases')
        if experts := config.get('num_experts') or config.get('num_local_experts'):
            raise ValueError(f'num_experts is {experts}; mixtures of experts are not supported')
        size, activation = config['intermediate_size'], config.get('hidden_act', 'silu')
        if activation != 'fatrelu':     # ProSparse's and MiniCPM-S's relu with a threshold
            return FeedForwardSpec(size, activation)
        if (threshold := config.get('hidden_act_param')) is None:
            raise ValueError('hidden_act is fatrelu, but hidden_act_param, its threshold, is '
                             'missing')
        return FeedForwardSpec(size, 'relu', relu_threshold=float(threshold))

    def norm(self, config: Config) -> NormSpec:
        return NormSpec('rms', float(config['rms_norm_eps']))

    def positions(self, config: Config) -> PositionSpec:
        width = _head_dim(config)
        if (turned := config.get('rotary_dim', width)) != width:
            raise ValueError(f'rotary_dim is {turned}; it must be the head size {width}')
        rope = rope_settings(config)
        theta = float(config.get('rope_theta') or rope.get('rope_theta') or 10000.0)
        return PositionSpec('rotary', theta, rope_factors(rope, width, theta))

    def model_tensors(self, spec: ModelSpec) -> Iterator[Tensor]:
        vocabulary = spec.embedding.vocab_size, spec.hidden_size
        yield from matrix('embedding', 'model.embed_tokens', 'token_embd', vocabulary)
        yield from norm('final_norm', 'model.norm', 'output_norm', spec.hidden_size, spec.norm)
        if not spec.embedding.tied:
            yield from matrix('head', 'lm_head', 'output', vocabulary)

    def layer_tensors(self, spec: ModelSpec) -> Iterator[Tensor]:
        d, attention = spec.hidden_size, spec.attention
        q, kv, bias = attention.query_width, attention.kv_width, attention.bias
        heads, kv_heads = ((attention.heads, attention.kv_heads) if self.gguf_interleaves
                           else (0, 0))
        yield from norm('attention_norm', 'input_layernorm', 'attn_norm', d, spec.norm)
        yield from matrix('q', 'self_attn.q_proj', 'attn_q', (q, d), bias, heads)
        yield from matrix('k', 'self_attn.k_proj', 'attn_k', (kv, d), bias, kv_heads)
        yield from matrix('v', 'self_attn.v_proj', 'attn_v', (kv, d), bias)
        yield from matrix('o', 'self_attn.o_proj', 'attn_output', (d, q))
        yield from norm('ffn_norm', 'post_attention_layernorm', 'ffn_norm', d, spec.norm)
        yield from self.block_tensors(spec)

    def block_tensors(self, spec: ModelSpec) -> Iterator[Tensor]:
        """Those of a feed-forward block."""
        d, neurons = spec.hidden_size, spec.feed_forward.size
        yield from matrix('gate', 'mlp.gate_proj', 'ffn_gate', (neurons, d))
        yield from matrix('up', 'mlp.up_proj', 'ffn_up', (neurons, d))
        yield from matrix('down', 'mlp.down_proj', 'ffn_down', (d, neurons))


def _head_dim(config: Config) -> int:
    return config.get('head_dim') or config['hidden_size'] // config['num_attention_heads']
