"""A ReLU checkpoint whose sparsity is planted: the gate's sign follows from a few directions.

Channel 0 of the residual stream is the same for every token and no layer writes to it. The gate
rows weigh it negatively, so that a neuron is on only where its low-rank part is large: about one
time in ten. A low-rank predictor can therefore be right about nearly all of it, and how far it
is right can be told from the weights alone.
"""

from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

from bench.support.tiny_checkpoint import write_checkpoint

PLANTED_RANK = 8
ACTIVE_SHARE = 0.03
_CONSTANT = 12.0
_QUANTILE = 1.8808              # of the normal distribution at 1 - ACTIVE_SHARE


def write_planted_checkpoint(folder: Path, seed: int = 7) -> Path:
    size = {'hidden_size': 128, 'intermediate_size': 4096, 'num_attention_heads': 8,
            'num_key_value_heads': 4}
    write_checkpoint(folder, seed, hidden_act='relu', **size)
    tensors = dict(load_file(folder / 'model.safetensors'))
    random = np.random.default_rng(seed)
    d, f = size['hidden_size'], size['intermediate_size']
    tensors['model.embed_tokens.weight'][:, 0] = _CONSTANT
    for name, tensor in tensors.items():
        if name.endswith('layernorm.weight'):
            tensor[:] = 1
        if name.endswith(('o_proj.weight', 'down_proj.weight')):
            tensor *= 0.3
            tensor[0] = 0
        if name.endswith('gate_proj.weight'):
            outer = random.standard_normal((f, PLANTED_RANK)) / PLANTED_RANK ** 0.5
            inner = random.standard_normal((PLANTED_RANK, d)) / d ** 0.5
            tensor[:] = outer @ inner
            # The other channels have a size of about 1 / rms each, channel 0 _CONSTANT / rms.
            tensor[:, 0] = -_QUANTILE / _CONSTANT
    save_file(tensors, folder / 'model.safetensors', metadata={'format': 'pt'})
    return folder
