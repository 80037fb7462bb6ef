"""Small checkpoints of every family and variant, and transformers' models of them."""

from collections.abc import Callable
from functools import partial
import json
from pathlib import Path
from typing import NamedTuple

from safetensors.numpy import load_file, save_file
import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    PreTrainedModel,
)
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from bench.support.tiny_checkpoint import (
    CHAT_TEMPLATE,
    byte_tokenizer,
    printable_tokens,
    write_checkpoint,
)

THRESHOLD = 0.1                                 # of fatrelu
EMBEDDING, DEPTH, BASE = 3.0, 2.4, 16           # MiniCPM's scales, each far from 1
RESIDUAL, WIDTH = DEPTH / 3 ** 0.5, 64 / BASE   # three layers, 64 wide


def write_qwen2(folder: Path) -> Path:
    return write_checkpoint(folder, seed=3, model_type='qwen2',
                            architectures=['Qwen2ForCausalLM'])


def write_fatrelu(folder: Path, **changes: object) -> Path:
    return write_checkpoint(folder, seed=9, hidden_act='fatrelu', hidden_act_param=THRESHOLD,
                            **changes)


def write_minicpm(folder: Path, **changes: object) -> Path:
    return write_checkpoint(folder, seed=6, **{
        'model_type': 'minicpm', 'architectures': ['MiniCPMForCausalLM'], 'scale_emb': EMBEDDING,
        'scale_depth': DEPTH, 'dim_model_base': BASE, **changes})


def write_opt(folder: Path, seed: int = 5, **changes: object) -> Path:
    """Random weights and biases, large enough to matter."""
    torch.manual_seed(seed)
    config = OPTConfig(**{
        'vocab_size': 258, 'hidden_size': 64, 'num_hidden_layers': 3, 'ffn_dim': 256,
        'num_attention_heads': 4, 'max_position_embeddings': 300, 'word_embed_proj_dim': 64,
        'bos_token_id': 256, 'eos_token_id': 257, 'pad_token_id': 1, **changes})
    model = OPTForCausalLM(config)
    for name, tensor in model.state_dict().items():
        if 'norm' in name and name.endswith('weight'):
            tensor.copy_(1 + 0.1 * torch.randn_like(tensor))
        else:
            tensor.copy_(torch.randn_like(tensor) * (0.3 if tensor.ndim == 1
                                                     else tensor.shape[1] ** -0.5))
    embedding = model.model.decoder.embed_tokens.weight.data
    embedding *= 4
    model.save_pretrained(folder)
    (folder / 'chat_template.jinja').write_text(CHAT_TEMPLATE)
    byte_tokenizer().save(str(folder / 'tokenizer.json'))
    return folder


def write_family(folder: Path, model_type: str, **changes: object) -> Path:
    """Random weights as transformers saves them; of 16 bits, so that fp16 stores have them, too."""
    torch.manual_seed(sum(map(ord, model_type)))
    config = AutoConfig.for_model(model_type, **{
        'vocab_size': 258, 'hidden_size': 64, 'num_hidden_layers': 3, 'num_attention_heads': 4,
        'num_key_value_heads': 2, 'head_dim': 32, 'intermediate_size': 192,
        'max_position_embeddings': 512, 'bos_token_id': 256, 'eos_token_id': 257,
        'pad_token_id': None, 'tie_word_embeddings': False, **changes})
    model = AutoModelForCausalLM.from_config(config)
    lacking = 'gemma' in model_type or model_type == 'nemotron'
    for name, tensor in model.named_parameters():
        random = torch.randn_like(tensor)
        if 'norm' in name and name.endswith('weight'):
            random = 0.2 * random + (not lacking)
        elif tensor.ndim == 1:
            random *= 0.3
        elif 'embed' in name:
            random *= 1 if config.tie_word_embeddings or 'gemma' in model_type else 4
        else:
            random *= tensor[0].numel() ** -0.5
        tensor.data.copy_(random.half())
    head = model.lm_head.weight.data
    head[256:] = 0                      # no answer ends
    if not config.tie_word_embeddings:
        head[[token for token in range(256) if token not in printable_tokens()]] = 0
    model.save_pretrained(folder)
    (folder / 'chat_template.jinja').write_text(CHAT_TEMPLATE)
    byte_tokenizer().save(str(folder / 'tokenizer.json'))
    return folder


class FatRelu(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.where(x > THRESHOLD, x, 0.0)


def reference_of(folder: Path) -> PreTrainedModel:
    """Of transformers, which knows neither fatrelu nor MiniCPM: llama with other parts is those."""
    config = json.loads((folder / 'config.json').read_text())
    kind = config['model_type']
    if kind != 'minicpm' and config.get('hidden_act') != 'fatrelu':
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        if 'long_factor' in (getattr(model.config, 'rope_parameters', None) or {}):
            # The engine has the factors of its whole context, transformers those of each pass.
            long, _ = ROPE_INIT_FUNCTIONS['longrope'](model.config, seq_len=512)
            model.model.rotary_emb.original_inv_freq.copy_(long)
        return model
    copy = folder.with_name(f'{folder.name}-llama')
    copy.mkdir(exist_ok=True)
    (copy / 'config.json').write_text(json.dumps({
        **config, 'model_type': 'llama', 'architectures': ['LlamaForCausalLM'],
        'hidden_act': config['hidden_act'].replace('fatrelu', 'silu')}))
    save_file(load_file(folder / 'model.safetensors'), copy / 'model.safetensors',
              metadata={'format': 'pt'})
    model = AutoModelForCausalLM.from_pretrained(copy, dtype=torch.float32).eval()
    if config['hidden_act'] == 'fatrelu':
        for layer in model.model.layers:
            layer.mlp.act_fn = FatRelu()
    if kind == 'minicpm':
        _scale(model)
    return model


def _scale(model: PreTrainedModel) -> None:
    """Put MiniCPM's three scales between the modules of a llama."""
    model.model.embed_tokens.register_forward_hook(lambda *call: call[2] * EMBEDDING)
    model.model.norm.register_forward_hook(lambda *call: call[2] / WIDTH)
    for layer in model.model.layers:
        layer.self_attn.register_forward_hook(lambda *call: (call[2][0] * RESIDUAL, *call[2][1:]))
        layer.mlp.register_forward_hook(lambda *call: call[2] * RESIDUAL)


_HALF = {'rope_type': 'default', 'rope_theta': 1e4, 'partial_rotary_factor': 0.5}
_YARN = {'rope_type': 'yarn', 'rope_theta': 1e4, 'factor': 4.0,
         'original_max_position_embeddings': 32}
_LONG = {'rope_type': 'longrope', 'rope_theta': 1e4, 'original_max_position_embeddings': 32,
         'short_factor': [1.0 + i / 40 for i in range(8)],
         'long_factor': [1.0 + i / 4 for i in range(8)]}
# Of `write_family`: whatever is computed otherwise is in one of them.
SETTINGS: dict[str, dict[str, object]] = {
    'llama-biases': {'model_type': 'llama', 'attention_bias': True},
    'llama-linear': {'model_type': 'llama', 'rope_parameters': {
        'rope_type': 'linear', 'rope_theta': 1e4, 'factor': 4.0}},
    'llama-llama3': {'model_type': 'llama', 'rope_parameters': {
        'rope_type': 'llama3', 'rope_theta': 1e4, 'factor': 8.0, 'low_freq_factor': 1.0,
        'high_freq_factor': 4.0, 'original_max_position_embeddings': 64}},
    'llama-yarn': {'model_type': 'llama', 'rope_parameters': _YARN},
    'llama-longrope': {'model_type': 'llama', 'head_dim': 16, 'rope_parameters': _LONG},
    'llama-dynamic': {'model_type': 'llama', 'rope_parameters': {
        'rope_type': 'dynamic', 'rope_theta': 1e4, 'factor': 2.0}},
    'mistral': {'model_type': 'mistral', 'sliding_window': 24},
    'mistral-wide': {'model_type': 'mistral', 'sliding_window': 4096},
    'ministral': {'model_type': 'ministral', 'sliding_window': 24, 'layer_types': [
        'sliding_attention', 'full_attention', 'sliding_attention']},
    'ministral3': {'model_type': 'ministral3', 'rope_parameters': {
        **_YARN, 'mscale': 1.0, 'mscale_all_dim': 1.0, 'llama_4_scaling_beta': 0.1,
        'original_max_position_embeddings': 256}},
    'qwen2-window': {'model_type': 'qwen2', 'use_sliding_window': True, 'sliding_window': 24,
                     'max_window_layers': 1},
    'qwen3': {'model_type': 'qwen3', 'tie_word_embeddings': True},
    'granite': {'model_type': 'granite', 'embedding_multiplier': 3.0, 'logits_scaling': 0.5,
                'residual_multiplier': 0.7, 'attention_multiplier': 0.3, 'head_dim': 16,
                'tie_word_embeddings': True},
    'lfm2': {'model_type': 'lfm2', 'num_hidden_layers': 5, 'head_dim': 16, 'layer_types': [
        'conv', 'full_attention', 'conv', 'conv', 'full_attention'], 'block_multiple_of': 48,
        'block_ffn_dim_multiplier': 1.1, 'tie_word_embeddings': True},
    'smollm3': {'model_type': 'smollm3', 'num_hidden_layers': 5, 'head_dim': 16,
                'tie_word_embeddings': True},
    'phi3': {'model_type': 'phi3', 'sliding_window': 24, 'head_dim': 16},
    'phi3-longrope': {'model_type': 'phi3', 'num_attention_heads': 2, 'num_key_value_heads': 1,
                      'head_dim': 32, 'rope_parameters': {**_LONG, 'partial_rotary_factor': 0.5},
                      'original_max_position_embeddings': 32},
    'gemma2': {'model_type': 'gemma2', 'num_hidden_layers': 4, 'sliding_window': 24,
               'query_pre_attn_scalar': 32, 'attn_logit_softcapping': 3.0,
               'final_logit_softcapping': 8.0, 'tie_word_embeddings': True},
    'gemma3': {'model_type': 'gemma3_text', 'num_hidden_layers': 7, 'sliding_window': 24,
               'query_pre_attn_scalar': 32, 'tie_word_embeddings': True, 'rope_parameters': {
                   'full_attention': {'rope_type': 'linear', 'rope_theta': 1e6, 'factor': 8.0},
                   'sliding_attention': {'rope_type': 'default', 'rope_theta': 1e4}}},
    'gemma3-scaled': {'model_type': 'gemma3_text', 'query_pre_attn_scalar': 20},
    'olmo2': {'model_type': 'olmo2', 'head_dim': 16},
    'nemotron': {'model_type': 'nemotron', 'num_attention_heads': 2, 'num_key_value_heads': 1,
                 'rope_parameters': _HALF},
    'nemotron-biases': {'model_type': 'nemotron', 'num_attention_heads': 2,
                        'attention_bias': True, 'mlp_bias': True, 'rope_parameters': _HALF},
    'arcee': {'model_type': 'arcee', 'rope_parameters': _YARN},
    'arcee-gelu': {'model_type': 'arcee', 'hidden_act': 'gelu'},
    'stablelm': {'model_type': 'stablelm', 'use_qkv_bias': True, 'head_dim': None,
                 'num_attention_heads': 1, 'num_key_value_heads': 1,
                 'rope_parameters': {**_HALF, 'partial_rotary_factor': 0.25}},
    'stablelm-parallel': {'model_type': 'stablelm', 'use_parallel_residual': True,
                          'head_dim': None, 'num_attention_heads': 2, 'num_key_value_heads': 1,
                          'rope_parameters': _HALF},
}
# What GGUF has words for.
IN_GGUF = (SETTINGS.keys() - {'mistral', 'ministral', 'qwen2-window', 'gemma3-scaled', 'arcee-gelu'}
           ) | {'llama', 'qwen2', 'minicpm', 'minicpm-tied'}
_SCALES = {'minicpm.embedding_scale': EMBEDDING, 'minicpm.residual_scale': RESIDUAL,
           'minicpm.logit_scale': WIDTH}
GGUF_METADATA = {'minicpm': _SCALES, 'minicpm-tied': _SCALES}   # beside that of config.json
NOT_IN_LLAMA_CPP = {'phi3'}             # whose windows it leaves out
WRITTEN: dict[str, Callable[[Path], Path]] = {
    'llama': write_checkpoint,
    'fatrelu': write_fatrelu,
    'qwen2': write_qwen2,
    'minicpm': write_minicpm,
    'minicpm-tied': lambda folder: write_minicpm(folder, tie_word_embeddings=True),
    'opt': write_opt,
    'opt-post-norm': lambda folder: write_opt(folder, do_layer_norm_before=False),
    'opt-untied': lambda folder: write_opt(folder, tie_word_embeddings=False),
    'opt-silu': lambda folder: write_opt(folder, activation_function='silu'),
    'opt-no-bias': lambda folder: write_opt(folder, enable_bias=False),
}
VARIANTS = WRITTEN | {name: partial(write_family, **settings)
                      for name, settings in SETTINGS.items()}


class FamilyModel(NamedTuple):
    name: str
    checkpoint: Path
    reference: PreTrainedModel
