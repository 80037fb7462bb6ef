"""The same checkpoint in transformers, read from the GGUF without any code of the package."""

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
)

_FAMILIES = {'llama': (LlamaConfig, LlamaForCausalLM), 'qwen2': (Qwen2Config, Qwen2ForCausalLM),
             'gemma3': (Gemma3TextConfig, Gemma3ForCausalLM)}
_PARTS = {'self_attn.q_proj': 'attn_q', 'self_attn.k_proj': 'attn_k', 'self_attn.v_proj': 'attn_v',
          'self_attn.o_proj': 'attn_output', 'mlp.gate_proj': 'ffn_gate', 'mlp.up_proj': 'ffn_up',
          'mlp.down_proj': 'ffn_down', 'input_layernorm': 'attn_norm',
          'post_attention_layernorm': 'ffn_norm'}
_GEMMA_PARTS = {**_PARTS, 'post_attention_layernorm': 'post_attention_norm',
                'pre_feedforward_layernorm': 'ffn_norm',
                'post_feedforward_layernorm': 'post_ffw_norm',
                'self_attn.q_norm': 'attn_q_norm', 'self_attn.k_norm': 'attn_k_norm'}


def load_reference(path: Path) -> PreTrainedModel:
    """A GGUF of the llama, qwen2 or gemma3 family with its weights dequantised to float32."""
    reader = gguf.GGUFReader(path)
    field = {name: value.contents() for name, value in reader.fields.items()}
    kind = field['general.architecture']
    make_config, make_model = _FAMILIES[kind]

    def tensor(name: str) -> torch.Tensor:
        """Norms of gemma have 1 more than transformers'."""
        found = stored[name]
        rows = torch.from_numpy(np.array(gguf.dequantize(found.data, found.tensor_type)))
        return rows - 1 if gemma and name.endswith('norm.weight') else rows

    stored = {tensor.name: tensor for tensor in reader.tensors}
    tied, gemma = 'output.weight' not in stored, kind == 'gemma3'
    head_dim = field.get(f'{kind}.attention.key_length',
                         field[f'{kind}.embedding_length']
                         // field[f'{kind}.attention.head_count'])
    heads = field[f'{kind}.attention.head_count']
    kv_heads = field[f'{kind}.attention.head_count_kv']
    config = make_config(
        vocab_size=len(field['tokenizer.ggml.tokens']),
        hidden_size=field[f'{kind}.embedding_length'],
        intermediate_size=field[f'{kind}.feed_forward_length'],
        num_hidden_layers=field[f'{kind}.block_count'], num_attention_heads=heads,
        num_key_value_heads=kv_heads, max_position_embeddings=field[f'{kind}.context_length'],
        rms_norm_eps=field[f'{kind}.attention.layer_norm_rms_epsilon'],
        head_dim=head_dim, tie_word_embeddings=tied, bos_token_id=None,
        eos_token_id=field['tokenizer.ggml.eos_token_id'],
        **(gemma_settings(field, head_dim) if gemma
           else {'rope_theta': field[f'{kind}.rope.freq_base']}))

    def rotary_rows(rows: torch.Tensor, count: int) -> torch.Tensor:
        """GGUF interleaves the two halves of llama's heads; transformers keeps them apart."""
        halves = rows.reshape(count, head_dim // 2, 2, -1).swapaxes(1, 2)
        return halves.reshape(rows.shape)

    state = {'model.embed_tokens.weight': tensor('token_embd.weight'),
             'model.norm.weight': tensor('output_norm.weight')}
    state['lm_head.weight'] = (state['model.embed_tokens.weight'] if tied
                               else tensor('output.weight'))
    for layer in range(config.num_hidden_layers):
        for ours, theirs in (_GEMMA_PARTS if gemma else _PARTS).items():
            for end in ('weight', 'bias'):
                name = f'blk.{layer}.{theirs}.{end}'
                if name not in stored:
                    continue
                rows = tensor(name)
                if kind == 'llama' and theirs in ('attn_q', 'attn_k'):
                    rows = rotary_rows(rows, heads if theirs == 'attn_q' else kv_heads)
                state[f'model.layers.{layer}.{ours}.{end}'] = rows
    # Without storage at first: random weights of this size take longer than reading them.
    with torch.device('meta'):
        model = make_model(config)
    model.load_state_dict(state, assign=True)
    model.model.rotary_emb = type(model.model.rotary_emb)(config)
    if gemma:
        model.model.embed_tokens.embed_scale = torch.tensor(config.hidden_size ** 0.5)
    return model.eval()


def gemma_settings(field: dict[str, Any], head_dim: int) -> dict[str, Any]:
    """Of the models up to 12B, whose queries are scaled by their heads."""
    theta = field['gemma3.rope.freq_base']
    scaling = ({'rope_type': 'linear', 'factor': field['gemma3.rope.scaling.factor']}
               if 'gemma3.rope.scaling.factor' in field else {'rope_type': 'default'})
    return {'sliding_window': field['gemma3.attention.sliding_window'],
            'query_pre_attn_scalar': head_dim, 'rope_parameters': {
                'full_attention': {'rope_theta': theta, **scaling},
                'sliding_attention': {'rope_theta': 1e4, 'rope_type': 'default'}}}


@torch.no_grad()
def reference_logits(model: PreTrainedModel, tokens: list[int]) -> np.ndarray:
    """float32 [tokens, vocabulary]."""
    return model(torch.tensor([tokens])).logits[0].numpy()


def reference_choices(model: PreTrainedModel, prompt: list[int], answer: list[int]) -> list[int]:
    """The likeliest token in the place of each one of an answer, given all before it.

    They are its own tokens where it is the greedy answer, and nowhere else; one pass tells.
    """
    return reference_logits(model, prompt + answer)[len(prompt) - 1:-1].argmax(axis=1).tolist()
