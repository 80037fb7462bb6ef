"""Small checkpoints with experts, as transformers writes them: split, fused, and as GGUF."""

from collections import defaultdict
from collections.abc import Callable
import json
from pathlib import Path
import shutil

import gguf
import numpy as np
from safetensors.numpy import load_file, save_file
import torch
from transformers import (
    AutoModelForCausalLM,
    Dots1Config,
    Ernie4_5_MoeConfig,
    Glm4MoeConfig,
    GptOssConfig,
    GraniteMoeConfig,
    GraniteMoeSharedConfig,
    Lfm2MoeConfig,
    MixtralConfig,
    OlmoeConfig,
    PretrainedConfig,
    Qwen2MoeConfig,
    Qwen3MoeConfig,
)

from bench.support.gguf_checkpoint import EXPERT_PARTS
from bench.support.tiny_checkpoint import CHAT_TEMPLATE, byte_tokenizer, printable_tokens

SHAPE = {'vocab_size': 258, 'hidden_size': 64, 'num_hidden_layers': 3, 'num_attention_heads': 4,
         'num_key_value_heads': 2, 'max_position_embeddings': 512, 'bos_token_id': 256,
         'eos_token_id': 257, 'pad_token_id': 0, 'tie_word_embeddings': False}


_MXFP4 = gguf.GGMLQuantizationType.MXFP4
# Of single tensors, in files of transformers 5.
_NAMES_NOW = {'block_sparse_moe.gate.': 'mlp.gate.', 'mlp.moe_statics': 'mlp.gate.moe_statics'}


def write_model(folder: Path, config: PretrainedConfig, seed: int = 11) -> Path:
    """Random weights, so large that every expert's part of an answer matters.

    With `seed` no token of the tests has two experts whose scores are nearly the same.
    """
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config)
    for name, tensor in model.state_dict().items():
        if 'norm' in name:
            tensor.copy_(1 + 0.1 * torch.randn_like(tensor))
        else:
            tensor.copy_(torch.randn_like(tensor) * tensor.shape[-1] ** -0.5)
        if 'embed' in name or 'lm_head' in name or name.endswith(('gate.weight', 'router.weight')):
            tensor.mul_(4)
        tensor.copy_(tensor.half())         # nothing is lost in fp16 stores and files
    head = model.lm_head.weight.data
    head[[token for token in range(len(head)) if token not in printable_tokens()]] *= (
        0.125 if config.tie_word_embeddings else 0)
    model.save_pretrained(folder)
    (folder / 'chat_template.jinja').write_text(CHAT_TEMPLATE)
    byte_tokenizer().save(str(folder / 'tokenizer.json'))
    return folder


def write_mixtral(folder: Path) -> Path:
    return write_model(folder, MixtralConfig(**SHAPE, intermediate_size=96, num_local_experts=8,
                                             num_experts_per_tok=2))


def write_gpt_oss(folder: Path) -> Path:
    """Experts' weights are such as MXFP4 has, and biases so large that many gates meet their limit.
    """
    write_model(folder, GptOssConfig(
        **SHAPE, head_dim=32, intermediate_size=96, num_local_experts=8, num_experts_per_tok=3,
        sliding_window=24, rope_parameters={
            # YaRN's ramp ends at a whole number, where llama.cpp's ends in any case.
            'rope_type': 'yarn', 'rope_theta': 172_250.0, 'factor': 4.0, 'truncate': False,
            'original_max_position_embeddings': 128}), seed=21)
    tensors = load_file(folder / 'model.safetensors')
    for name, values in tensors.items():
        if values.ndim == 3:
            packed = gguf.quantize(np.ascontiguousarray(values.swapaxes(1, 2)), _MXFP4)
            tensors[name] = np.ascontiguousarray(gguf.dequantize(packed, _MXFP4).swapaxes(1, 2))
        elif name.endswith(('_proj_bias', 'router.bias', 'sinks')):
            values *= 30 if 'gate_up' in name else 4
        elif name.endswith('q_proj.weight'):
            values /= 4         # so that experts do not make much of a cache of 16 bits
    save_file(tensors, folder / 'model.safetensors', metadata={'format': 'pt'})
    return folder


def in_mxfp4(folder: Path, copy: Path) -> Path:
    """The same with blocks and scales in the place of experts' weights, as gpt-oss has them."""
    shutil.copytree(folder, copy)
    tensors = {}
    for name, values in load_file(folder / 'model.safetensors').items():
        if values.ndim == 3:
            rows = np.ascontiguousarray(values.swapaxes(1, 2))
            packed = gguf.quantize(rows, _MXFP4).reshape(*rows.shape[:2], -1, 17)
            # There the halves of a block lie beside each other, here one value after the other.
            nibbles = np.concatenate([packed[..., 1:] & 15, packed[..., 1:] >> 4], axis=-1)
            tensors[f'{name}_blocks'] = nibbles[..., ::2] | nibbles[..., 1::2] << 4
            tensors[f'{name}_scales'] = np.ascontiguousarray(packed[..., 0])
        else:
            tensors[name] = values
    save_file(tensors, copy / 'model.safetensors', metadata={'format': 'pt'})
    config = json.loads((copy / 'config.json').read_text())
    config['quantization_config'] = {'quant_method': 'mxfp4'}
    (copy / 'config.json').write_text(json.dumps(config))
    return copy


def fused(folder: Path, copy: Path) -> Path:
    """The same with all experts of a layer in one tensor each: gate above up, and down.

    With the other names of transformers 5, too; gpt-oss's, which are so in any case, in MXFP4.
    """
    if any('sinks' in name for name in load_file(folder / 'model.safetensors')):
        return in_mxfp4(folder, copy)
    shutil.copytree(folder, copy)
    tensors, experts = {}, defaultdict(dict)
    for name, tensor in load_file(folder / 'model.safetensors').items():
        before, found, rest = name.partition('.experts.')
        if 'input_linear' in name or 'output_linear' in name:       # fused as it is
            tensors[name] = tensor
        elif found:
            expert, part, _ = rest.split('.')
            experts[f'{before.replace("block_sparse_moe", "mlp")}.experts'][
                EXPERT_PARTS[part], int(expert)] = tensor
        else:
            for before, now in _NAMES_NOW.items():
                name = name.replace(before, now)
            tensors[name] = tensor
    for prefix, parts in experts.items():
        gate, up, down = ([parts[part, expert] for expert in range(len(parts) // 3)]
                          for part in ('gate', 'up', 'down'))
        tensors[f'{prefix}.gate_up_proj'] = np.concatenate([np.stack(gate), np.stack(up)], axis=1)
        tensors[f'{prefix}.down_proj'] = np.stack(down)
    save_file(tensors, copy / 'model.safetensors', metadata={'format': 'pt'})
    return copy


EXPERT_FAMILIES: dict[str, Callable[[Path], Path]] = {
    'mixtral': write_mixtral,
    'granitemoe': lambda folder: write_model(folder, GraniteMoeConfig(
        **SHAPE, intermediate_size=96, num_local_experts=8, num_experts_per_tok=3,
        embedding_multiplier=3.0, residual_multiplier=0.6, attention_multiplier=0.4,
        logits_scaling=2.0)),
    'granitemoeshared': lambda folder: write_model(folder, GraniteMoeSharedConfig(
        **SHAPE, intermediate_size=96, num_local_experts=8, num_experts_per_tok=3,
        shared_intermediate_size=160, embedding_multiplier=3.0, residual_multiplier=0.6,
        attention_multiplier=0.4, logits_scaling=2.0)),
    'gpt_oss': write_gpt_oss,
    'olmoe': lambda folder: write_model(folder, OlmoeConfig(
        **{**SHAPE, 'num_key_value_heads': 4}, intermediate_size=96, num_experts=8,
        num_experts_per_tok=3)),
    'qwen3_moe': lambda folder: write_model(folder, Qwen3MoeConfig(
        **SHAPE, head_dim=32, moe_intermediate_size=96, intermediate_size=200, num_experts=8,
        num_experts_per_tok=3, norm_topk_prob=True), seed=12),
    'qwen2_moe': lambda folder: write_model(folder, Qwen2MoeConfig(
        **SHAPE, moe_intermediate_size=96, intermediate_size=160, num_experts=8,
        num_experts_per_tok=3, shared_expert_intermediate_size=128), seed=12),
    'dots1': lambda folder: write_model(folder, Dots1Config(
        **{**SHAPE, 'num_key_value_heads': 4}, head_dim=32, moe_intermediate_size=96,
        intermediate_size=160, n_routed_experts=8, n_shared_experts=2, num_experts_per_tok=3,
        n_group=4, topk_group=2, first_k_dense_replace=1, norm_topk_prob=True,
        routed_scaling_factor=2.5, sliding_window=None)),
    'glm4_moe': lambda folder: write_model(folder, Glm4MoeConfig(
        **SHAPE, head_dim=32, moe_intermediate_size=96, intermediate_size=160, n_routed_experts=8,
        n_shared_experts=1, num_experts_per_tok=3, first_k_dense_replace=1, use_qk_norm=True,
        attention_bias=True, routed_scaling_factor=1.5, num_nextn_predict_layers=0)),
    'lfm2_moe': lambda folder: write_model(folder, Lfm2MoeConfig(
        **{**SHAPE, 'num_hidden_layers': 5, 'tie_word_embeddings': True}, num_experts=8,
        num_experts_per_tok=3, moe_intermediate_size=96, intermediate_size=160, num_dense_layers=2,
        layer_types=['conv', 'full_attention', 'conv', 'conv', 'full_attention']), seed=13),
    'ernie4_5_moe': lambda folder: write_model(folder, Ernie4_5_MoeConfig(
        **SHAPE, moe_intermediate_size=96, intermediate_size=160, moe_num_experts=8,
        moe_num_shared_experts=2, moe_k=3), seed=14),
}
