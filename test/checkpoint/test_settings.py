"""Settings of config.json that transformers reads in some families and passes over in others."""

from pathlib import Path

import pytest
import torch

from bench.model.settings import FAMILIES, compared

# Each was read, or passed over, where transformers does not: what must be refused now, by its
# name, and what must give transformers' logits.
SETTINGS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    'llama': (('attn_logit_softcapping', 'final_logit_softcapping', 'layer_types',
               'partial_rotary_factor', 'rope_parameters.partial_rotary_factor',
               'linear, partial_rotary_factor', 'rope_parameters by layer'),
              ('rotary_dim', 'original_max_position_embeddings', 'llama3 without length')),
    'ministral': ((), ('layer_types', 'no layer_types')),
    'ministral3': (('no rope', 'layer_types'), ()),
    'mixtral': ((), ('no rope',)),
    'qwen3': (('layer_types',), ('layer_types, use_sliding_window', 'max_window_layers')),
    'smollm3': ((), ('no rope', 'layer_types')),
    'phi3': (('yarn', 'dynamic', 'layer_types'), ()),
    'gemma2': ((), ('hidden_act', 'hidden_activation', 'layer_types')),
    'gemma3_text': (('attn_logit_softcapping', 'rope_parameters', 'yarn.truncate'),
                    ('final_logit_softcapping', 'sliding_window_pattern',
                     '_sliding_window_pattern', 'rope_scaling, rope_theta')),
    'gpt_oss': ((), ('no rope', 'rope_theta alone', 'layer_types', 'no layer_types')),
    'ernie4_5_moe': (('num_experts_per_tok',), ('moe_k', 'moe_norm_min')),
    'nemotron': ((), ('partial_rotary_factor', 'no rope')),
    'dots1': ((), ('norm_topk_prob false', 'routed_scaling_factor', 'n_group')),
}


@pytest.mark.parametrize('name', SETTINGS)
def test_as_transformers_has_them(name: str, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    refused, read = SETTINGS[name]
    found = compared(FAMILIES[name](tmp_path / 'checkpoint'), [*refused, *read])
    assert [setting for setting in refused if found[setting].ours is not None] == []
    assert [setting for setting in read if found[setting].ours is None
            or found[setting].wrong] == []
