"""The metadata of a GGUF file under the names that config.json has for them."""

from typing import Any

_KEYS = {                               # config.json: GGUF, behind the architecture's name
    'hidden_size': 'embedding_length',
    'num_hidden_layers': 'block_count',
    'max_position_embeddings': 'context_length',
    'num_attention_heads': 'attention.head_count',
    'num_key_value_heads': 'attention.head_count_kv',
    'head_dim': 'attention.key_length',
    'rms_norm_eps': 'attention.layer_norm_rms_epsilon',
    'norm_eps': 'attention.layer_norm_epsilon',
    'layer_norm_eps': 'attention.layer_norm_epsilon',
    'sliding_window': 'attention.sliding_window',
    'attn_logit_softcapping': 'attn_logit_softcapping',
    'final_logit_softcapping': 'final_logit_softcapping',
    'attention_multiplier': 'attention.scale',
    'embedding_multiplier': 'embedding_scale',
    'residual_multiplier': 'residual_scale',
    'logits_scaling': 'logit_scale',
    'use_parallel_residual': 'use_parallel_residual',
    'intermediate_size': 'feed_forward_length',
    'num_experts': 'expert_count',
    'num_experts_per_tok': 'expert_used_count',
    'moe_intermediate_size': 'expert_feed_forward_length',
    'n_shared_experts': 'expert_shared_count',
    'shared_expert_intermediate_size': 'expert_shared_feed_forward_length',
    'first_k_dense_replace': 'leading_dense_block_count',
    'moe_layer_interval': 'interleave_moe_layer_step',
    'n_group': 'expert_group_count',
    'topk_group': 'expert_group_used_count',
    'routed_scaling_factor': 'expert_weights_scale',
    'norm_topk_prob': 'expert_weights_norm',
    'scoring_func': 'expert_gating_func',
    'conv_L_cache': 'shortconv.l_cache',
    'num_nextn_predict_layers': 'nextn_predict_layers',
    'rope_theta': 'rope.freq_base',
    'rope_local_base_freq': 'rope.freq_base_swa',
    'rope.dimension_count': 'rope.dimension_count',
    'rope.scaling.attn_factor': 'rope.scaling.attn_factor',
    'original_max_position_embeddings': 'rope.scaling.original_context_length',
}
_ROPE_KEYS = {                          # the same of rope_scaling, behind rope.scaling
    'attention_factor': 'yarn_attn_factor',
    'mscale_all_dim': 'yarn_log_multiplier',
    'beta_fast': 'yarn_beta_fast',
    'beta_slow': 'yarn_beta_slow',
}


class GgufConfig(dict[str, Any]):
    """A dict whose KeyError has the file's own name of what is missing."""

    def __init__(self, fields: dict[str, Any], defaults: dict[str, Any]) -> None:
        """`defaults`: what a file may leave out."""
        self._architecture = kind = fields['general.architecture']
        super().__init__(defaults | {name: _of_all_layers(f'{kind}.{key}', fields)
                                     for name, key in _KEYS.items() if f'{kind}.{key}' in fields})
        self['model_type'] = kind
        self['vocab_size'] = len(fields['tokenizer.ggml.tokens'])
        self['partial_rotary_factor'] = 1.0     # unless rope.dimension_count says another width
        self.setdefault('rope_theta', 10000.0)
        self['rope_scaling'] = _rope_scaling(fields, f'{kind}.rope')

    def __missing__(self, name: str) -> Any:
        raise KeyError(f'{self._architecture}.{_KEYS.get(name, name)}')


def _of_all_layers(key: str, fields: dict[str, Any]) -> Any:
    """A setting that may be there for each layer; ValueError where they differ."""
    found = fields[key]
    if not isinstance(found, list):
        return found
    if len(set(found)) != 1:
        raise ValueError(f'{key} is {found}; layers that differ are not supported')
    return found[0]


def _rope_scaling(fields: dict[str, Any], rope: str) -> dict[str, Any]:
    """Without a type it is linear, and so are the files that have the factor under its old key."""
    factor = fields.get(f'{rope}.scaling.factor', fields.get(f'{rope}.scale_linear', 0.0))
    kind = fields.get(f'{rope}.scaling.type', 'linear' if factor else 'none')
    return {'rope_type': 'default' if kind == 'none' else kind,
            'factor': factor or 1.0,    # 0, too, means that nothing is scaled
            'mscale': 1.0, **{name: fields[f'{rope}.scaling.{key}'] for name, key in
                              _ROPE_KEYS.items() if f'{rope}.scaling.{key}' in fields}}
