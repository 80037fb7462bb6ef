"""The llama family: RMS norms, rotary grouped-query attention, gated feed-forward block."""

import math
from typing import Any

from flash_llm_ros.model_spec import (
    AttentionSpec,
    FeedForwardSpec,
    ModelSpec,
    NormSpec,
    PositionSpec,
)

GGUF_PERMUTED = ('q', 'k')              # GGUF stores their rows in the interleaved rotary order

_LAYER_TENSORS = {                      # canonical: (Hugging Face, GGUF)
    'attention_norm': ('input_layernorm', 'attn_norm'),
    'q': ('self_attn.q_proj', 'attn_q'),
    'k': ('self_attn.k_proj', 'attn_k'),
    'v': ('self_attn.v_proj', 'attn_v'),
    'o': ('self_attn.o_proj', 'attn_output'),
    'ffn_norm': ('post_attention_layernorm', 'ffn_norm'),
    'gate': ('mlp.gate_proj', 'ffn_gate'),
    'up': ('mlp.up_proj', 'ffn_up'),
    'down': ('mlp.down_proj', 'ffn_down'),
}
_MODEL_TENSORS = {
    'embedding': ('model.embed_tokens', 'token_embd'),
    'final_norm': ('model.norm', 'output_norm'),
    'head': ('lm_head', 'output'),
}


def tensor_shapes(spec: ModelSpec) -> dict[str, tuple[int, ...]]:
    """Canonical tensor names and their shapes, [out, in] for matrices."""
    d, f = spec.hidden_size, spec.feed_forward.size
    q, kv = spec.attention.query_width, spec.attention.kv_width
    shapes: dict[str, tuple[int, ...]] = {
        'embedding': (spec.embedding.vocab_size, d), 'final_norm': (d,)}
    if not spec.embedding.tied:
        shapes['head'] = (spec.embedding.vocab_size, d)
    layer = {'attention_norm': (d,), 'q': (q, d), 'k': (kv, d), 'v': (kv, d), 'o': (d, q),
             'ffn_norm': (d,), 'gate': (f, d), 'up': (f, d), 'down': (d, f)}
    if spec.attention.bias:
        layer |= {'q_bias': (q,), 'k_bias': (kv,), 'v_bias': (kv,)}
    for index in range(spec.layers):
        shapes.update({f'layers.{index}.{name}': shape for name, shape in layer.items()})
    return shapes


def huggingface_name(name: str) -> str:
    if name in _MODEL_TENSORS:
        return f'{_MODEL_TENSORS[name][0]}.weight'
    _, index, part = name.split('.')
    return f'model.layers.{index}.{_LAYER_TENSORS[_matrix(part)][0]}.{_kind(part)}'


def gguf_name(name: str) -> str:
    if name in _MODEL_TENSORS:
        return f'{_MODEL_TENSORS[name][1]}.weight'
    _, index, part = name.split('.')
    return f'blk.{index}.{_LAYER_TENSORS[_matrix(part)][1]}.{_kind(part)}'


def _matrix(part: str) -> str:
    return part.removesuffix('_bias')


def _kind(part: str) -> str:
    return 'bias' if part.endswith('_bias') else 'weight'


def spec_from_huggingface(config: dict[str, Any], name: str) -> dict[str, Any]:
    """ModelSpec fields from config.json, but for the tokens and the tied embeddings."""
    for key in ('attention_bias', 'mlp_bias'):
        if config.get(key):
            raise ValueError(f'{key} is true; the llama family here has no biases')
    return shape_from_huggingface(config, name)


def shape_from_huggingface(config: dict[str, Any], name: str) -> dict[str, Any]:
    """The same for any family whose config.json has llama's keys."""
    heads = config['num_attention_heads']
    head_dim = config.get('head_dim') or config['hidden_size'] // heads
    rope = config.get('rope_parameters') or config.get('rope_scaling') or {}
    theta = float(config.get('rope_theta') or rope.get('rope_theta') or 10000.0)
    return {
        'name': name, 'model_type': config['model_type'],
        'hidden_size': config['hidden_size'],
        'layers': config['num_hidden_layers'], 'max_context': config['max_position_embeddings'],
        'attention': AttentionSpec(heads, config.get('num_key_value_heads') or heads, head_dim),
        'feed_forward': FeedForwardSpec(config['intermediate_size'], **_activation(config)),
        'norm': NormSpec('rms', float(config['rms_norm_eps'])),
        'positions': PositionSpec('rotary', theta, _rope_factors(rope, head_dim, theta)),
        'vocab_size': config['vocab_size'],
    }


def _activation(config: dict[str, Any]) -> dict[str, Any]:
    """ProSparse and MiniCPM-S call relu with a threshold fatrelu."""
    if (name := config.get('hidden_act', 'silu')) != 'fatrelu':
        return {'activation': name}
    if (threshold := config.get('hidden_act_param')) is None:
        raise ValueError('hidden_act is fatrelu, but hidden_act_param, its threshold, is missing')
    return {'activation': 'relu', 'relu_threshold': float(threshold)}


def spec_from_gguf(fields: dict[str, Any], name: str) -> dict[str, Any]:
    """ModelSpec fields from GGUF metadata, but for the tokens and the tied embeddings."""
    kind = fields['general.architecture']

    def field(key: str, default: Any = None) -> Any:
        value = fields.get(f'{kind}.{key}', default)
        if value is None:
            raise ValueError(f'the metadata lacks {kind}.{key}')
        return value

    if fields.get(f'{kind}.expert_count'):
        raise ValueError(f'{kind}.expert_count is set; mixtures of experts are not supported')
    hidden, heads = field('embedding_length'), field('attention.head_count')
    head_dim, theta = field('attention.key_length', hidden // heads), field('rope.freq_base', 1e4)
    if (turned := field('rope.dimension_count', head_dim)) != head_dim:
        raise ValueError(f'{kind}.rope.dimension_count is {turned}; it must be the head size '
                         f'{head_dim}')
    rope = {'rope_type': field('rope.scaling.type', 'none'),
            'factor': field('rope.scaling.factor', 1.0)}
    return {
        'name': name, 'model_type': kind, 'hidden_size': hidden,
        'layers': field('block_count'), 'max_context': field('context_length'),
        'attention': AttentionSpec(heads, field('attention.head_count_kv', heads), head_dim),
        'feed_forward': FeedForwardSpec(field('feed_forward_length'), field('hidden_act', 'silu')),
        'norm': NormSpec('rms', float(field('attention.layer_norm_rms_epsilon'))),
        'positions': PositionSpec('rotary', float(theta), _rope_factors(rope, head_dim, theta)),
        'vocab_size': len(fields['tokenizer.ggml.tokens']),
    }


def _rope_factors(rope: dict[str, Any], head_dim: int, theta: float) -> tuple[float, ...]:
    """What divides each inverse frequency, [head_dim / 2]; empty when nothing does."""
    kind = rope.get('rope_type') or rope.get('type') or 'default'
    if kind in ('default', 'none'):
        return ()
    if kind == 'linear':
        return (float(rope['factor']),) * (head_dim // 2)
    if kind == 'llama3':
        return tuple(_llama3_factor(rope, theta ** (2 * i / head_dim))
                     for i in range(head_dim // 2))
    raise ValueError(f'rope scaling {kind!r} is not supported; supported are '
                     'default, linear and llama3')


def _llama3_factor(rope: dict[str, Any], period: float) -> float:
    """Llama 3.1's scaling: long wavelengths are stretched, short ones kept, a ramp between."""
    factor, low, high = (float(rope[key]) for key in
                         ('factor', 'low_freq_factor', 'high_freq_factor'))
    turns = int(rope['original_max_position_embeddings']) / (2 * math.pi * period)
    if turns < low:
        return factor
    if turns > high:
        return 1.0
    smooth = (turns - low) / (high - low)
    return 1.0 / ((1.0 - smooth) / factor + smooth)
