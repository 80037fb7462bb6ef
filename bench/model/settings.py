"""Settings of config.json, family by family: which ones transformers reads, passes over or refuses,
and whether answers here are the same.

Each setting is changed in a tiny checkpoint of random weights. Where both give logits, of 48
tokens, they must be the same; a setting may also be refused here, by its name.
"""

from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterable, Mapping
from functools import partial
import json
from pathlib import Path
import sys
import tempfile
from typing import Any, NamedTuple

import numpy as np
import torch
from transformers import AutoModelForCausalLM
from transformers.utils import logging

from bench.quality.fidelity import engine_logits
from bench.quality.reference_model import reference_logits
from bench.support.command import Report, command, run, show
from bench.support.expert_checkpoints import EXPERT_FAMILIES
from bench.support.family_checkpoints import write_family, write_opt
from bench.support.tiny_checkpoint import converted
from flash_llm_ros.checkpoint.errors import CheckpointError
from flash_llm_ros.engine import Engine, EngineConfig

Config = dict[str, Any]
TOKENS = np.random.default_rng(0).integers(0, 256, 48).tolist()
MOST_DIFFERENCE = 2e-3                  # of the largest logit
GONE = object()                         # a setting that is left out
_WINDOW = {'sliding_window': 24}
_GEMMA = {**_WINDOW, 'query_pre_attn_scalar': 32}
FAMILIES: dict[str, Callable[[Path], Path]] = {'opt': write_opt} | {
    name: partial(write_family, model_type=name, **settings) for name, settings in {
        'llama': {}, 'arcee': {}, 'granite': {'head_dim': 16}, 'olmo2': {'head_dim': 16},
        'mistral': _WINDOW, 'ministral': _WINDOW, 'ministral3': _WINDOW, 'qwen2': _WINDOW,
        'qwen3': _WINDOW, 'phi3': {**_WINDOW, 'head_dim': 16},
        'smollm3': {**_WINDOW, 'head_dim': 16, 'num_hidden_layers': 5},
        'gemma2': {**_GEMMA, 'num_hidden_layers': 4, 'attn_logit_softcapping': 3.0,
                   'final_logit_softcapping': 8.0},
        'gemma3_text': {**_GEMMA, 'num_hidden_layers': 7},
        'lfm2': {'head_dim': 16, 'layer_types': ['conv', 'full_attention', 'conv']},
        'nemotron': {'num_attention_heads': 2},
        'stablelm': {'head_dim': None, 'num_attention_heads': 1, 'num_key_value_heads': 1},
    }.items()} | EXPERT_FAMILIES


def rope(kind: str, **settings: object) -> Config:
    """As config.json had it before transformers 5."""
    return {'rope_parameters': GONE, 'rope_scaling': {'rope_type': kind, **settings}}


def turned(**settings: object) -> Config:
    return {'rope_parameters': {'rope_type': 'default', **settings}}


def every_other(config: Config) -> list[str]:
    return [('sliding_attention', 'full_attention')[layer % 2]
            for layer in range(config['num_hidden_layers'])]


_LLAMA3 = {'factor': 8.0, 'low_freq_factor': 1.0, 'high_freq_factor': 4.0}
_YARN = {'factor': 4.0, 'original_max_position_embeddings': 64}
_BY_LAYER = {'full_attention': {'rope_type': 'default', 'rope_theta': 77.0},
             'sliding_attention': {'rope_type': 'default', 'rope_theta': 33.0}}
_NEAR = {'sliding_window': 8, 'layer_types': GONE}
CHANGES: dict[str, Config] = {
    'no num_key_value_heads': {'num_key_value_heads': GONE},
    'no head_dim': {'head_dim': GONE},
    'head_dim null': {'head_dim': None},
    'attn_logit_softcapping': {'attn_logit_softcapping': 2.0},
    'attn_logit_softcapping null': {'attn_logit_softcapping': None},
    'no attn_logit_softcapping': {'attn_logit_softcapping': GONE},
    'final_logit_softcapping': {'final_logit_softcapping': 2.0},
    'no final_logit_softcapping': {'final_logit_softcapping': GONE},
    'layer_types': {'layer_types': every_other, 'sliding_window': 8},
    'layer_types, use_sliding_window': {'layer_types': every_other, 'sliding_window': 8,
                                        'use_sliding_window': True},
    'no layer_types': _NEAR,
    'sliding_window null': {'sliding_window': None},
    'no sliding_window': {'sliding_window': GONE},
    'use_sliding_window': {**_NEAR, 'use_sliding_window': True},
    'max_window_layers': {**_NEAR, 'use_sliding_window': True, 'max_window_layers': 1},
    'sliding_window_pattern': {**_NEAR, 'sliding_window_pattern': 2,
                               '_sliding_window_pattern': GONE},
    '_sliding_window_pattern': {**_NEAR, '_sliding_window_pattern': 2},
    'num_experts_per_tok': {'num_experts_per_tok': 1},
    'no num_experts_per_tok': {'num_experts_per_tok': GONE},
    'moe_k': {'moe_k': 1},
    'moe_norm_min': {'moe_norm_min': 0.9},
    'norm_topk_prob': {'norm_topk_prob': True},
    'norm_topk_prob false': {'norm_topk_prob': False},
    'no norm_topk_prob': {'norm_topk_prob': GONE},
    'n_group': {'n_group': 2, 'topk_group': 1},
    'no n_group': {'n_group': GONE, 'topk_group': GONE},
    'routed_scaling_factor': {'routed_scaling_factor': 0.7},
    'no routed_scaling_factor': {'routed_scaling_factor': GONE},
    'scoring_func': {'scoring_func': 'softmax'},
    'no first_k_dense_replace': {'first_k_dense_replace': GONE},
    'no n_shared_experts': {'n_shared_experts': GONE},
    'no moe_num_shared_experts': {'moe_num_shared_experts': GONE},
    'moe_layer_interval': {'moe_layer_interval': 2},
    'moe_layer_end_index': {'moe_layer_end_index': 1},
    'use_qk_norm': {'use_qk_norm': False},
    'qkv_bias': {'qkv_bias': False},
    'use_bias': {'use_bias': True},
    'clip_qkv': {'clip_qkv': 0.3},
    'decoder_sparse_step': {'decoder_sparse_step': 2},
    'mlp_only_layers': {'mlp_only_layers': [1]},
    'attention_bias': {'attention_bias': True},
    'mlp_bias': {'mlp_bias': True},
    'use_qkv_bias': {'use_qkv_bias': True},
    'hidden_act': {'hidden_act': 'gelu'},
    'hidden_act swish': {'hidden_act': 'swish'},
    'hidden_act gelu_new': {'hidden_act': 'gelu_new'},
    'hidden_act quick_gelu': {'hidden_act': 'quick_gelu'},
    'no hidden_act': {'hidden_act': GONE},
    'hidden_activation': {'hidden_activation': 'gelu'},
    'no hidden_activation': {'hidden_activation': GONE, 'hidden_act': 'silu'},
    'activation_function': {'activation_function': 'gelu'},
    'rms_norm_eps': {'rms_norm_eps': 0.3},
    'norm_eps': {'norm_eps': 0.3},
    'layer_norm_eps': {'layer_norm_eps': 0.3},
    'rope_theta': {'rope_theta': 77.0},
    'rope_theta alone': {'rope_theta': 77.0, 'rope_parameters': GONE},
    'no rope': {'rope_parameters': GONE},
    'rope_parameters': turned(rope_theta=77.0),
    'rope_parameters, rope_theta': {**turned(rope_theta=77.0), 'rope_theta': 99.0},
    'rope_parameters without rope_theta': turned(),
    'rope_parameters by layer': {'rope_parameters': _BY_LAYER},
    'rope_scaling': rope('linear', factor=2.0),
    'rope_scaling, rope_theta': {**rope('linear', factor=2.0), 'rope_theta': 77.0},
    'rope_scaling.rope_theta': {**rope('linear', factor=2.0, rope_theta=55.0), 'rope_theta': 77.0},
    'rope_scaling beside': {'rope_scaling': {'rope_type': 'linear', 'factor': 2.0}},
    'dynamic': rope('dynamic', factor=2.0),
    'llama3': rope('llama3', **_LLAMA3, original_max_position_embeddings=64),
    'llama3 without length': rope('llama3', **_LLAMA3),
    'yarn': rope('yarn', **_YARN),
    'yarn without length': rope('yarn', factor=4.0),
    'yarn, factor null': rope('yarn', **{**_YARN, 'factor': None}),
    'yarn.attention_factor': rope('yarn', **_YARN, attention_factor=1.7),
    'yarn.attn_factor': rope('yarn', **_YARN, attn_factor=1.7),
    'yarn.mscale': rope('yarn', **_YARN, mscale=1.5),
    'yarn.mscale_all_dim': rope('yarn', **_YARN, mscale=1.5, mscale_all_dim=0.7),
    'yarn.truncate': rope('yarn', **_YARN, truncate=False, beta_fast=20, beta_slow=2),
    'original_max_position_embeddings': {**rope('yarn', **_YARN),
                                         'original_max_position_embeddings': 16},
    'partial_rotary_factor': {'partial_rotary_factor': 0.5},
    'rope_parameters.partial_rotary_factor': turned(rope_theta=1e4, partial_rotary_factor=0.5),
    'linear, partial_rotary_factor': rope('linear', factor=2.0, partial_rotary_factor=0.5),
    'rotary_dim': {'rotary_dim': 16},
    'rope_local_base_freq': {'rope_local_base_freq': 33.0, 'rope_parameters': GONE},
    'llama_4_scaling_beta': turned(rope_theta=1e4, llama_4_scaling_beta=0.5),
    'query_pre_attn_scalar': {'query_pre_attn_scalar': 7},
    'no query_pre_attn_scalar': {'query_pre_attn_scalar': GONE},
    'use_bidirectional_attention': {'use_bidirectional_attention': True},
    'embedding_multiplier': {'embedding_multiplier': 2.0},
    'residual_multiplier': {'residual_multiplier': 0.5},
    'attention_multiplier': {'attention_multiplier': 0.1},
    'logits_scaling': {'logits_scaling': 3.0},
    'no multipliers': dict.fromkeys(('embedding_multiplier', 'residual_multiplier',
                                     'attention_multiplier', 'logits_scaling'), GONE),
    'no_rope_layers': {'no_rope_layers': [1, 0] * 10},
    'no_rope_layer_interval': {'no_rope_layers': GONE, 'no_rope_layer_interval': 2},
    'qk_layernorm': {'qk_layernorm': True},
    'use_parallel_residual': {'use_parallel_residual': True},
    'do_layer_norm_before': {'do_layer_norm_before': False},
    'enable_bias': {'enable_bias': False},
    'no word_embed_proj_dim': {'word_embed_proj_dim': GONE},
    'no tie_word_embeddings': {'tie_word_embeddings': GONE},
}


class Found(NamedTuple):
    """Of a changed setting: whether logits are as without it, None where there are none."""

    theirs: bool | None
    ours: bool | None
    wrong: bool                         # both have logits, and they differ


def compared(folder: Path, names: Iterable[str]) -> dict[str, Found]:
    """Of those in `CHANGES` that change a checkpoint's config.json, which is as it was then."""
    path = folder / 'config.json'
    plain = json.loads(path.read_text())
    expected = of_transformers(folder)
    found = {}
    for name in names:
        config = {**plain, **{key: value(plain) if callable(value) else value
                              for key, value in CHANGES[name].items()}}
        config = {key: value for key, value in config.items() if value is not GONE}
        if config == plain:
            continue
        path.write_text(json.dumps(config))
        theirs, ours = of_transformers(folder), of_store(folder)
        found[name] = Found(same(theirs, expected), same(ours, expected),
                            same(ours, theirs) is False)
    path.write_text(json.dumps(plain))
    return found


def of_transformers(folder: Path) -> np.ndarray | None:
    """Logits of `TOKENS`; None where it ends in an error, or makes up what the folder lacks."""
    try:
        model, loaded = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, output_loading_info=True)
        return None if loaded['missing_keys'] else reference_logits(model.eval(), TOKENS)
    except Exception:       # of any kind, from anywhere in it
        return None


def of_store(folder: Path) -> np.ndarray | None:
    """The same of a new fp16 store; None where it is refused."""
    with tempfile.TemporaryDirectory() as made:
        try:
            store = converted(folder, Path(made) / 'store', neurons='fp16', calibrate=False)
        except CheckpointError:
            return None
        engine = Engine.open(EngineConfig(store.path, 40_000_000, 'exact', lock_memory=False,
                                          context_length=64, kv_cache='int16'))
        try:
            return engine_logits(engine, TOKENS)
        finally:
            engine.close()


def same(some: np.ndarray | None, others: np.ndarray | None) -> bool | None:
    """None where one of them is missing."""
    if some is None or others is None:
        return None
    return bool(np.abs(some - others).max() <= MOST_DIFFERENCE * np.abs(others).max())


def names_of(found: Mapping[str, Found], chosen: Callable[[Found], bool]) -> str:
    return ', '.join(name for name, result in found.items() if chosen(result))


def measure(options: Namespace) -> Report:
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    rows = {}
    for name in options.family or FAMILIES:
        with tempfile.TemporaryDirectory() as folder:
            rows[name] = compared(FAMILIES[name](Path(folder) / 'checkpoint'), CHANGES)
    for name, found in rows.items():
        show((name, 'settings'), [
            ('read', names_of(found, lambda result: result.theirs is False)),
            ('passed over', names_of(found, lambda result: bool(result.theirs))),
            ('refused', names_of(found, lambda result: result.theirs is None)),
            ('refused here alone', names_of(found, lambda result: result.ours is None
                                            and result.theirs is not None)),
            ('wrong', names_of(found, lambda result: result.wrong))])
    wrong = [f'{name}: {setting}' for name, found in rows.items()
             for setting, result in found.items() if result.wrong]
    return Report({name: {setting: result._asdict() for setting, result in found.items()}
                   for name, found in rows.items()},
                  f'{sum(map(len, rows.values()))} settings of {len(rows)} families, '
                  f'wrong: {", ".join(wrong) or "none"}', bool(wrong))


def parser() -> ArgumentParser:
    result = command(__doc__)
    result.add_argument('--family', action='append', choices=FAMILIES, help='only this one')
    return result


if __name__ == '__main__':
    sys.exit(run(parser(), measure))
