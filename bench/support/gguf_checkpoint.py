"""Writes small checkpoints as GGUF, with the row order that llama.cpp's converter makes."""

from collections import defaultdict
from collections.abc import Mapping
import json
import math
from pathlib import Path
import re
from typing import Any

import gguf
from gguf import GGMLQuantizationType as Type
import numpy as np
from safetensors.numpy import load_file
from transformers import AutoConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from bench.support.tiny_checkpoint import CHAT_TEMPLATE

# Where GGUF has another name.
ARCHITECTURES = {'mistral': 'llama', 'mixtral': 'llama', 'ministral3': 'mistral3',
                 'gemma3_text': 'gemma3', 'qwen3_moe': 'qwen3moe', 'qwen2_moe': 'qwen2moe',
                 'glm4_moe': 'glm4moe', 'ernie4_5_moe': 'ernie4_5-moe',
                 'granitemoeshared': 'granitemoe', 'gpt_oss': 'gpt-oss',
                 'lfm2_moe': 'lfm2moe'}
PERMUTED = ('llama', 'minicpm', 'mistral3', 'granite', 'granitemoe', 'smollm3', 'arcee')
NORMS_LACK_1 = ('gemma2', 'gemma3', 'nemotron')
EXPERT = re.compile(r'model\.layers\.(\d+)\.\w+\.experts\.\d+\.(\w+)\.weight')
FUSED = re.compile(
    r'model\.layers\.(\d+)\.(block_sparse_moe|shared_mlp)\.(input|output)_linear\.weight')
EXPERT_PARTS = {'w1': 'gate', 'w3': 'up', 'w2': 'down', 'gate_proj': 'gate', 'up_proj': 'up',
                'down_proj': 'down'}


def write_gguf(folder: Path, path: Path, kind: Type = Type.F32,
               metadata: Mapping[str, object] = {}, drop: tuple[str, ...] = (),
               extra: Mapping[str, tuple[np.ndarray, Type]] = {}) -> dict[str, np.ndarray]:
    """The Hugging Face checkpoint in `folder` as GGUF, matrices as `kind`.

    `metadata` replaces fields (None leaves one out), `drop` leaves tensors out, and `extra` adds
    tensors that are packed already. Returns the original tensors by their GGUF names.
    """
    config = json.loads((folder / 'config.json').read_text())
    architecture = ARCHITECTURES.get(config['model_type'], config['model_type'])
    stored = load_file(folder / 'model.safetensors')
    if architecture == 'gpt-oss':
        stored = with_split_gates(stored)
    tensors = gguf_tensors(stored, architecture, config['num_hidden_layers'])
    extra = {**factor_tensors(config), **extra}
    writer = gguf.GGUFWriter(path, architecture)
    fields = {**fields_of(config, architecture), **byte_tokenizer_fields(), **metadata}
    for key, value in fields.items():
        if value is not None:
            add_field(writer, key, value)
    for name, tensor in tensors.items():
        if name in extra or name in drop:
            continue
        if architecture in PERMUTED and 'attn_q' in name:
            tensor = permuted(tensor, config['num_attention_heads'])
        elif architecture in PERMUTED and 'attn_k' in name:
            tensor = permuted(tensor, config['num_key_value_heads'])
        add_tensor(writer, name, tensor, kind if tensor.ndim > 1 else Type.F32)
    for name, (packed, packed_kind) in extra.items():
        writer.add_tensor(name, packed, raw_dtype=packed_kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tensors


def gguf_tensors(tensors: Mapping[str, np.ndarray], architecture: str,
                 layers: int) -> dict[str, np.ndarray]:
    """By their GGUF names; the experts of a layer are one tensor there."""
    kinds = {name: kind for kind, name in gguf.MODEL_ARCH_NAMES.items()}
    names = gguf.get_tensor_name_map(kinds[architecture], layers)
    found, experts = {}, defaultdict(list)
    for name in sorted(tensors, key=lambda name: [int(part) if part.isdigit() else 0
                                                  for part in name.split('.')]):
        if match := EXPERT.fullmatch(name):
            layer, part = match.groups()
            experts[f'blk.{layer}.ffn_{EXPERT_PARTS[part]}_exps.weight'].append(tensors[name])
        elif match := FUSED.fullmatch(name):
            layer, block, kind = match.groups()
            of = 'shexp' if block == 'shared_mlp' else 'exps'
            parts = [tensors[name]] if kind == 'output' else np.split(tensors[name], 2, axis=-2)
            found |= {f'blk.{layer}.ffn_{part}_{of}.weight': rows for part, rows in zip(
                ('down',) if kind == 'output' else ('gate', 'up'), parts, strict=True)}
        else:
            lacks = architecture in NORMS_LACK_1 and name.endswith('norm.weight')
            known = names.get_name(name.replace('correction_bias', 'correction.bias')
                                   .replace('expert_bias', 'expert_bias.bias'),
                                   ('.weight', '.bias'))
            found[known] = np.squeeze(tensors[name]) + np.float32(lacks)
    return found | {name: np.stack(parts) for name, parts in experts.items()}


def with_split_gates(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """gpt-oss's: gate and up apart, as rows, under names that the library knows."""
    found = {}
    for name, tensor in tensors.items():
        rows = tensor.swapaxes(1, 2) if tensor.ndim == 3 else tensor
        name = name.replace('_proj_bias', '_proj.bias').removesuffix('.sinks') + (
            '.sinks.weight' if name.endswith('.sinks') else '')
        name += '.weight' if tensor.ndim == 3 else ''
        if 'gate_up_proj' in name:
            found |= {name.replace('gate_up', part): np.ascontiguousarray(rows[:, first::2])
                      for first, part in enumerate(('gate', 'up'))}
        else:
            found[name] = np.ascontiguousarray(rows)
    return found


def permuted(tensor: np.ndarray, heads: int) -> np.ndarray:
    """Halves of a head interleaved: row i of the first half, row i of the second, and so on."""
    result = np.empty_like(tensor)
    size = len(tensor) // heads
    for head in range(heads):
        for i in range(size // 2):
            result[head * size + 2 * i] = tensor[head * size + i]
            result[head * size + 2 * i + 1] = tensor[head * size + size // 2 + i]
    return result


def add_tensor(writer: gguf.GGUFWriter, name: str, tensor: np.ndarray, kind: Type) -> None:
    if kind == Type.F32:
        writer.add_tensor(name, tensor)
    elif kind == Type.F16:
        writer.add_tensor(name, tensor.astype(np.float16))
    else:
        writer.add_tensor(name, gguf.quantize(tensor, kind), raw_dtype=kind)


def add_field(writer: gguf.GGUFWriter, key: str, value: object) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)


def fields_of(config: Mapping[str, Any], kind: str) -> dict[str, object]:
    """What llama.cpp's converter writes of a config.json, under the name of its architecture."""
    rope, heads = rope_of(config), config['num_attention_heads']
    head_dim = config.get('head_dim') or config['hidden_size'] // heads
    scaling = rope.get('rope_type', 'default')
    stretched = scaling in ('linear', 'yarn', 'longrope')
    found = {
        'block_count': config['num_hidden_layers'],
        **_expert_fields(config),
        'context_length': config['max_position_embeddings'],
        'embedding_length': config['hidden_size'],
        'feed_forward_length': _block_size(config),
        'attention.head_count': heads,
        'attention.head_count_kv': _kv_heads(config),
        'attention.layer_norm_rms_epsilon': config.get('rms_norm_eps', config.get('norm_eps')),
        'shortconv.l_cache': config.get('conv_L_cache'),
        'attention.layer_norm_epsilon': config.get('norm_eps') or config.get('layer_norm_eps'),
        'attention.sliding_window': config.get('sliding_window') if kind != 'llama' else None,
        'attention.scale': config.get('attention_multiplier'),
        'attention.temperature_scale': rope.get('llama_4_scaling_beta'),
        'attn_logit_softcapping': config.get('attn_logit_softcapping'),
        'final_logit_softcapping': config.get('final_logit_softcapping'),
        'embedding_scale': config.get('embedding_multiplier'),
        'residual_scale': config.get('residual_multiplier'),
        'logit_scale': config.get('logits_scaling'),
        'use_parallel_residual': config.get('use_parallel_residual'),
        'rope.freq_base': rope['rope_theta'],
        'rope.dimension_count': int(head_dim * rope.get('partial_rotary_factor', 1.0)),
        'rope.scaling.type': scaling if stretched else None,
        'rope.scaling.factor': rope.get('factor') if stretched else None,
        'rope.scaling.original_context_length': (
            rope.get('original_max_position_embeddings') if stretched else None),
        'rope.scaling.attn_factor': long_scale(config) if scaling == 'longrope' else None,
        'rope.scaling.yarn_log_multiplier': rope.get('mscale_all_dim'),
        **(dict.fromkeys(('attention.key_length', 'attention.value_length'), head_dim)
           if head_dim * heads != config['hidden_size'] else {}),
    }
    return {'general.name': 'tiny', **{f'{kind}.{key}': value for key, value in found.items()}}


def _block_size(config: Mapping[str, Any]) -> int:
    size = config['intermediate_size']
    if config.get('block_auto_adjust_ff_dim'):
        step = config['block_multiple_of']
        size = int(config['block_ffn_dim_multiplier'] * int(2 * size / 3))
        size = (size + step - 1) // step * step
    return size


def _kv_heads(config: Mapping[str, Any]) -> int | list[int]:
    heads = config['num_key_value_heads']
    if 'conv_L_cache' not in config:
        return heads
    return [0 if kind == 'conv' else heads for kind in config['layer_types']]


def _expert_fields(config: Mapping[str, Any]) -> dict[str, object]:
    names = {
        'expert_count': ('num_local_experts', 'num_experts', 'n_routed_experts',
                         'moe_num_experts'),
        'expert_used_count': ('num_experts_per_tok', 'moe_k'),
        'expert_feed_forward_length': ('moe_intermediate_size',),
        'expert_shared_feed_forward_length': ('shared_expert_intermediate_size',
                                              'shared_intermediate_size'),
        'expert_shared_count': ('n_shared_experts', 'moe_num_shared_experts'),
        'leading_dense_block_count': ('first_k_dense_replace', 'moe_layer_start_index',
                                      'num_dense_layers'),
        'interleave_moe_layer_step': ('moe_layer_interval',),
        'expert_group_count': ('n_group',),
        'expert_group_used_count': ('topk_group',),
        'expert_weights_scale': ('routed_scaling_factor',),
        'expert_weights_norm': ('norm_topk_prob',),
        'nextn_predict_layers': ('num_nextn_predict_layers',)}
    found = {field: next((config[name] for name in of if config.get(name)), None)
             for field, of in names.items()}
    if 'n_routed_experts' in config or 'use_expert_bias' in config:
        found['expert_gating_func'] = 2         # sigmoid
    if 'swiglu_limit' in config:
        found['expert_feed_forward_length'] = config['intermediate_size']
    if 'moe_k' in config:
        found['expert_shared_feed_forward_length'] = (config['moe_num_shared_experts']
                                                      * config['moe_intermediate_size'])
    return found


def rope_of(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Rotary settings, of layers that see everything where there are two kinds."""
    rope = config.get('rope_parameters') or {'rope_theta': config['rope_theta']}
    return rope.get('full_attention', rope)


def long_scale(config: Mapping[str, Any]) -> float:
    original = rope_of(config)['original_max_position_embeddings']
    return math.sqrt(1 + math.log(config['max_position_embeddings'] / original)
                     / math.log(original))


def factor_tensors(config: Mapping[str, Any]) -> dict[str, tuple[np.ndarray, Type]]:
    """Stretched wavelengths that metadata has no words for, by transformers' arithmetic."""
    rope = rope_of(config)
    if rope.get('rope_type') == 'llama3':
        made = AutoConfig.for_model(**config)
        plain = 1 / rope['rope_theta'] ** (np.arange(0, made.head_dim, 2) / made.head_dim)
        turned = ROPE_INIT_FUNCTIONS['llama3'](made)[0].numpy()
        return {'rope_freqs.weight': ((plain / turned).astype(np.float32), Type.F32)}
    return {f'rope_factors_{kind}.weight': (np.array(rope[f'{kind}_factor'], np.float32), Type.F32)
            for kind in ('long', 'short') if f'{kind}_factor' in rope}


def byte_tokenizer_fields() -> dict[str, object]:
    """The tokenizer of `tiny_checkpoint.byte_tokenizer` as GGUF metadata.

    GGUF knows no empty list of merges, so there is one, in the place of a byte that no text has.
    """
    alphabet = sorted(gguf_alphabet())
    alphabet[alphabet.index('ÿ')] = 'qj'
    return {
        'tokenizer.ggml.model': 'gpt2', 'tokenizer.ggml.pre': 'smollm',
        'tokenizer.ggml.tokens': [*alphabet, '<|im_start|>', '<|im_end|>'],
        'tokenizer.ggml.token_type': [1] * 256 + [3, 3],
        'tokenizer.ggml.merges': ['q j'],
        'tokenizer.ggml.bos_token_id': 256, 'tokenizer.ggml.eos_token_id': 257,
        'tokenizer.ggml.add_bos_token': False, 'tokenizer.chat_template': CHAT_TEMPLATE,
    }


def gguf_alphabet() -> list[str]:
    """GPT-2's one printable character for each byte, in the order of the bytes."""
    printable = [*range(ord('!'), ord('~') + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = iter(range(0x100, 0x200))
    return [chr(byte) if byte in printable else chr(next(others)) for byte in range(256)]
