"""The OPT family: layer norms, learned positions, biases, a feed-forward block without gate."""

from typing import Any

from flash_llm_ros.model_spec import (
    AttentionSpec,
    FeedForwardSpec,
    ModelSpec,
    NormSpec,
    PositionSpec,
)

GGUF_PERMUTED = ()

_POSITION_OFFSET = 2                    # rows of the table before the first token's
_LAYER_TENSORS = {
    'attention_norm': 'self_attn_layer_norm', 'q': 'self_attn.q_proj', 'k': 'self_attn.k_proj',
    'v': 'self_attn.v_proj', 'o': 'self_attn.out_proj', 'ffn_norm': 'final_layer_norm',
    'up': 'fc1', 'down': 'fc2',
}
_MODEL_TENSORS = {'embedding': 'model.decoder.embed_tokens', 'head': 'lm_head',
                  'positions': 'model.decoder.embed_positions',
                  'final_norm': 'model.decoder.final_layer_norm'}


def tensor_shapes(spec: ModelSpec) -> dict[str, tuple[int, ...]]:
    """Canonical tensor names and their shapes, [out, in] for matrices."""
    d, f = spec.hidden_size, spec.feed_forward.size
    shapes: dict[str, tuple[int, ...]] = {
        'embedding': (spec.embedding.vocab_size, d),
        'positions': (spec.max_context + _POSITION_OFFSET, d)}
    if spec.norm.first:
        shapes |= {'final_norm': (d,), 'final_norm_bias': (d,)}
    if not spec.embedding.tied:
        shapes['head'] = (spec.embedding.vocab_size, d)
    layer = {'attention_norm': (d,), 'attention_norm_bias': (d,), 'ffn_norm': (d,),
             'ffn_norm_bias': (d,), 'q': (d, d), 'k': (d, d), 'v': (d, d), 'o': (d, d),
             'up': (f, d), 'down': (d, f)}
    if spec.attention.bias:
        layer |= {f'{part}_bias': (d,) for part in ('q', 'k', 'v', 'o', 'down')}
        layer['up_bias'] = (f,)
    for index in range(spec.layers):
        shapes.update({f'layers.{index}.{name}': shape for name, shape in layer.items()})
    return shapes


def huggingface_name(name: str) -> str:
    part = name.rpartition('.')[2]
    kind = 'bias' if part.endswith('_bias') else 'weight'
    part = part.removesuffix('_bias')
    if part in _MODEL_TENSORS:
        return f'{_MODEL_TENSORS[part]}.{kind}'
    return f'model.decoder.layers.{name.split(".")[1]}.{_LAYER_TENSORS[part]}.{kind}'


def gguf_name(name: str) -> str:
    """There are no GGUF files of OPT."""
    return huggingface_name(name)


def spec_from_huggingface(config: dict[str, Any], name: str) -> dict[str, Any]:
    """ModelSpec fields from config.json, but for the tokens and the tied embeddings."""
    hidden, heads = config['hidden_size'], config['num_attention_heads']
    if (width := config.get('word_embed_proj_dim') or hidden) != hidden:
        raise ValueError(f'word_embed_proj_dim is {width}; only models whose embeddings are as '
                         f'wide as their layers ({hidden}) are supported')
    if config.get('_remove_final_layer_norm'):
        raise ValueError('_remove_final_layer_norm is true; it must be false')
    if not config.get('layer_norm_elementwise_affine', True):
        raise ValueError('layer_norm_elementwise_affine is false; norms must have weights')
    biases = config.get('enable_bias', True)
    return {
        'name': name, 'model_type': config['model_type'], 'hidden_size': hidden,
        'layers': config['num_hidden_layers'], 'max_context': config['max_position_embeddings'],
        'attention': AttentionSpec(heads, heads, hidden // heads, biases, biases),
        'feed_forward': FeedForwardSpec(config['ffn_dim'],
                                        config.get('activation_function', 'relu'), gated=False,
                                        bias=biases),
        'norm': NormSpec('layer', 1e-5, config.get('do_layer_norm_before', True)),
        'positions': PositionSpec('learned', offset=_POSITION_OFFSET),
        'vocab_size': config['vocab_size'],
    }


def spec_from_gguf(fields: dict[str, Any], name: str) -> dict[str, Any]:
    raise ValueError('OPT is read from Hugging Face folders only')
