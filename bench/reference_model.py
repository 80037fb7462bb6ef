"""The same checkpoint in transformers, read from the GGUF without any code of the package."""

from pathlib import Path

import gguf
import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

_PARTS = {'self_attn.q_proj': 'attn_q', 'self_attn.k_proj': 'attn_k', 'self_attn.v_proj': 'attn_v',
          'self_attn.o_proj': 'attn_output', 'mlp.gate_proj': 'ffn_gate', 'mlp.up_proj': 'ffn_up',
          'mlp.down_proj': 'ffn_down', 'input_layernorm': 'attn_norm',
          'post_attention_layernorm': 'ffn_norm'}


def load_reference(path: Path) -> LlamaForCausalLM:
    """A llama-family GGUF with its weights dequantised to float32."""
    reader = gguf.GGUFReader(path)
    field = {name: value.contents() for name, value in reader.fields.items()}
    tensors = {tensor.name: torch.from_numpy(np.array(gguf.dequantize(tensor.data,
                                                                      tensor.tensor_type)))
               for tensor in reader.tensors}
    heads, kv_heads = field['llama.attention.head_count'], field['llama.attention.head_count_kv']
    config = LlamaConfig(
        vocab_size=field['llama.vocab_size'], hidden_size=field['llama.embedding_length'],
        intermediate_size=field['llama.feed_forward_length'],
        num_hidden_layers=field['llama.block_count'], num_attention_heads=heads,
        num_key_value_heads=kv_heads, max_position_embeddings=field['llama.context_length'],
        rms_norm_eps=field['llama.attention.layer_norm_rms_epsilon'],
        rope_theta=field['llama.rope.freq_base'], tie_word_embeddings=True,
        bos_token_id=None, eos_token_id=field['tokenizer.ggml.eos_token_id'])
    head_dim = config.hidden_size // heads

    def rotary_rows(rows: torch.Tensor, count: int) -> torch.Tensor:
        """GGUF interleaves the two halves of each head; transformers keeps them apart."""
        halves = rows.reshape(count, head_dim // 2, 2, -1).swapaxes(1, 2)
        return halves.reshape(rows.shape)

    state = {'model.embed_tokens.weight': tensors['token_embd.weight'],
             'lm_head.weight': tensors['token_embd.weight'],
             'model.norm.weight': tensors['output_norm.weight']}
    for layer in range(config.num_hidden_layers):
        for ours, theirs in _PARTS.items():
            rows = tensors[f'blk.{layer}.{theirs}.weight']
            if theirs == 'attn_q':
                rows = rotary_rows(rows, heads)
            if theirs == 'attn_k':
                rows = rotary_rows(rows, kv_heads)
            state[f'model.layers.{layer}.{ours}.weight'] = rows
    model = LlamaForCausalLM(config)
    model.load_state_dict(state)
    return model.eval()


@torch.no_grad()
def reference_logits(model: LlamaForCausalLM, tokens: list[int]) -> np.ndarray:
    """float32 [tokens, vocabulary]."""
    return model(torch.tensor([tokens])).logits[0].numpy()


@torch.no_grad()
def reference_greedy(model: LlamaForCausalLM, prompt: list[int], count: int) -> list[int]:
    """The next `count` tokens, or fewer when the model ends its answer."""
    out = model.generate(torch.tensor([prompt]), max_new_tokens=count, do_sample=False,
                         attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
                         pad_token_id=model.config.eos_token_id)
    return out[0, len(prompt):].tolist()
