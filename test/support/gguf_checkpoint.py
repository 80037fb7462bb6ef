"""Writes small checkpoints as GGUF, with the row order that llama.cpp's converter makes."""

from collections import defaultdict
from collections.abc import Mapping
import json
from pathlib import Path
import re

import gguf
from gguf import GGMLQuantizationType as Type
import numpy as np
from safetensors.numpy import load_file
from tiny_checkpoint import CHAT_TEMPLATE

NAMES = {
    'model.embed_tokens': 'token_embd', 'model.norm': 'output_norm', 'lm_head': 'output',
    'input_layernorm': 'attn_norm', 'post_attention_layernorm': 'ffn_norm',
    'self_attn.q_proj': 'attn_q', 'self_attn.k_proj': 'attn_k', 'self_attn.v_proj': 'attn_v',
    'self_attn.o_proj': 'attn_output', 'mlp.gate_proj': 'ffn_gate', 'mlp.up_proj': 'ffn_up',
    'mlp.down_proj': 'ffn_down', 'block_sparse_moe.gate': 'ffn_gate_inp',
}
ARCHITECTURES = {'mixtral': 'llama'}    # where GGUF has another name
PERMUTED = ('llama', 'minicpm')
EXPERT = re.compile(r'model\.layers\.(\d+)\.\w+\.experts\.\d+\.(\w+)\.weight')
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
    tensors = gguf_tensors(load_file(folder / 'model.safetensors'))
    config['model_type'] = architecture = ARCHITECTURES.get(config['model_type'],
                                                            config['model_type'])
    writer = gguf.GGUFWriter(path, architecture)
    for key, value in {**fields_of(config), **byte_tokenizer_fields(), **metadata}.items():
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


def gguf_tensors(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """By their GGUF names; the experts of a layer are one tensor there."""
    found, experts = {}, defaultdict(list)
    for name in sorted(tensors, key=lambda name: [int(part) if part.isdigit() else 0
                                                  for part in name.split('.')]):
        if match := EXPERT.fullmatch(name):
            layer, part = match.groups()
            experts[f'blk.{layer}.ffn_{EXPERT_PARTS[part]}_exps.weight'].append(tensors[name])
        else:
            found[gguf_name(name)] = tensors[name]
    return found | {name: np.stack(parts) for name, parts in experts.items()}


def gguf_name(name: str) -> str:
    stem, _, kind = name.rpartition('.')
    if stem.startswith('model.layers.'):
        _, _, layer, part = stem.split('.', 3)
        return f'blk.{layer}.{NAMES[part]}.{kind}'
    return f'{NAMES[stem]}.{kind}'


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


def fields_of(config: Mapping[str, object]) -> dict[str, object]:
    kind = config['model_type']
    head_dim = config.get('head_dim') or config['hidden_size'] // config['num_attention_heads']
    experts = config.get('num_local_experts') or config.get('num_experts')
    theta = config.get('rope_theta') or config['rope_parameters']['rope_theta']
    return {
        'general.name': 'tiny', f'{kind}.block_count': config['num_hidden_layers'],
        f'{kind}.context_length': config['max_position_embeddings'],
        f'{kind}.embedding_length': config['hidden_size'],
        f'{kind}.feed_forward_length': config['intermediate_size'],
        f'{kind}.attention.head_count': config['num_attention_heads'],
        f'{kind}.attention.head_count_kv': config['num_key_value_heads'],
        f'{kind}.attention.layer_norm_rms_epsilon': config['rms_norm_eps'],
        f'{kind}.rope.freq_base': theta,
        f'{kind}.rope.dimension_count': head_dim,
        f'{kind}.attention.key_length': (
            None if head_dim * config['num_attention_heads'] == config['hidden_size']
            else head_dim),
        f'{kind}.expert_count': experts,
        f'{kind}.expert_used_count': config.get('num_experts_per_tok'),
        f'{kind}.expert_feed_forward_length': config.get('moe_intermediate_size'),
    }


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
