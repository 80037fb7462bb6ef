"""Small checkpoints of every family and variant, and transformers' models of them."""

from collections.abc import Callable
import json
from pathlib import Path
from typing import NamedTuple

from safetensors.numpy import load_file, save_file
from tiny_checkpoint import CHAT_TEMPLATE, byte_tokenizer, write_checkpoint
import torch
from transformers import AutoModelForCausalLM, OPTConfig, OPTForCausalLM, PreTrainedModel

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


class FatRelu(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.where(x > THRESHOLD, x, 0.0)


def reference_of(folder: Path) -> PreTrainedModel:
    """Of transformers, which knows neither fatrelu nor MiniCPM: llama with other parts is those."""
    config = json.loads((folder / 'config.json').read_text())
    kind = config['model_type']
    if kind not in ('llama', 'minicpm'):
        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
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


VARIANTS: dict[str, Callable[[Path], Path]] = {
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


class FamilyModel(NamedTuple):
    name: str
    checkpoint: Path
    reference: PreTrainedModel
