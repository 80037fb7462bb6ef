"""Small llama and qwen2 checkpoints with random or planted weights, as Hugging Face folders."""

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from flash_llm_ros.convert.conversion import convert
from flash_llm_ros.convert.options import ConversionOptions
from flash_llm_ros.store.flash_store import FlashStore

SPECIAL_TOKENS = ('<|im_start|>', '<|im_end|>')
CHAT_TEMPLATE = ("{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + "
                 "message['content'] + '<|im_end|>\n'}}{% endfor %}"
                 "{% if add_generation_prompt %}{{'<|im_start|>assistant\n'}}{% endif %}")
CONFIG = {
    'model_type': 'llama', 'architectures': ['LlamaForCausalLM'], 'hidden_size': 64,
    'num_hidden_layers': 3, 'num_attention_heads': 4, 'num_key_value_heads': 2, 'head_dim': 16,
    'intermediate_size': 256, 'vocab_size': 258, 'max_position_embeddings': 4096,
    'rms_norm_eps': 1e-5, 'rope_theta': 10000.0, 'hidden_act': 'silu',
    'tie_word_embeddings': False, 'eos_token_id': 257, 'bos_token_id': 256,
    'attention_bias': False, 'mlp_bias': False,
}


def write_checkpoint(folder: Path, seed: int = 0, **changes: object) -> Path:
    """Random weights. Only printable ASCII is likely, so that the answers are text."""
    config = {**CONFIG, **changes}
    random = np.random.default_rng(seed)
    d, f = config['hidden_size'], config['intermediate_size']
    q = config['num_attention_heads'] * config['head_dim']
    kv = config['num_key_value_heads'] * config['head_dim']

    def matrix(rows: int, columns: int, gain: float = 1.0) -> np.ndarray:
        return (random.standard_normal((rows, columns)) * gain / columns ** 0.5).astype(np.float32)

    embedding = matrix(config['vocab_size'], d, d ** 0.5)
    printable = printable_tokens()
    tensors = {'model.embed_tokens.weight': embedding, 'model.norm.weight': np.ones(d, np.float32)}
    if not config['tie_word_embeddings']:
        head = np.zeros_like(embedding)
        head[printable] = matrix(len(printable), d, 3.0)
        tensors['lm_head.weight'] = head
    for layer in range(config['num_hidden_layers']):
        prefix = f'model.layers.{layer}.'
        for name, rows, columns in (('q', q, d), ('k', kv, d), ('v', kv, d), ('o', d, q)):
            tensors[f'{prefix}self_attn.{name}_proj.weight'] = matrix(rows, columns)
            if config['model_type'] == 'qwen2' and name != 'o':
                tensors[f'{prefix}self_attn.{name}_proj.bias'] = matrix(1, rows, rows ** 0.5)[0]
        for name, rows, columns in (('gate', f, d), ('up', f, d), ('down', d, f)):
            tensors[f'{prefix}mlp.{name}_proj.weight'] = matrix(rows, columns)
        for name in ('input_layernorm', 'post_attention_layernorm'):
            tensors[f'{prefix}{name}.weight'] = (1 + 0.1 * random.standard_normal(d)
                                                 ).astype(np.float32)
    _write(folder, config, tensors)
    return folder


def _write(folder: Path, config: dict[str, object], tensors: dict[str, np.ndarray]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / 'config.json').write_text(json.dumps(config))
    (folder / 'chat_template.jinja').write_text(CHAT_TEMPLATE)
    save_file(tensors, folder / 'model.safetensors', metadata={'format': 'pt'})
    byte_tokenizer().save(str(folder / 'tokenizer.json'))


def printable_tokens() -> list[int]:
    return [token for token, character in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))
            if ' ' < character <= '~']


def byte_tokenizer() -> Tokenizer:
    """One token a byte, and the special tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({c: i for i, c in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False)
                                  for token in SPECIAL_TOKENS])
    return tokenizer


def converted(checkpoint: Path, target: Path, **options: object) -> FlashStore:
    """A flash store of a checkpoint, made with these `ConversionOptions`; nobody watches."""
    return convert(checkpoint, target, ConversionOptions(**options), lambda *_: None)


def tiny_store(folder: Path, **options: object) -> Path:
    """A flash store of a random checkpoint; takes a second."""
    checkpoint = write_checkpoint(folder / 'checkpoint')
    return converted(checkpoint, folder / 'tiny.store', **options).path
