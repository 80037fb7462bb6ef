"""Writes a checkpoint as a Hugging Face folder, some of its tensors replaced."""

import json
import os
from pathlib import Path
import shutil
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from flash_llm_ros.checkpoint.checkpoint import Checkpoint
from flash_llm_ros.checkpoint.errors import CheckpointError
from flash_llm_ros.checkpoint.huggingface import HuggingFaceCheckpoint
from flash_llm_ros.checkpoint.weight_scales import WeightScales
from flash_llm_ros.model_spec import ModelSpec


def write_huggingface(source: Checkpoint, folder: Path, changes: dict[str, Any],
                      replaced: dict[str, NDArray[np.float32]]) -> None:
    """Write a new `folder`, which appears complete or not at all.

    `changes` go into config.json; `replaced` has tensors by their canonical names. Matrices are
    stored as float16, vectors as float32. A family that is llama but for scales is written as
    llama, since they are in the weights. Raises CheckpointError, FileExistsError and OSError.
    """
    if folder.exists():
        raise FileExistsError(f'{folder} exists; give another name.')
    config = {**_config(source), **changes, 'dtype': 'float16'}
    partial = folder.with_name(f'.{folder.name}.partial-{os.getpid()}')
    partial.mkdir(parents=True)
    try:
        _write(partial / 'config.json', json.dumps(config, indent=2))
        _write(partial / 'generation_config.json',
               json.dumps({'eos_token_id': list(source.spec.end_tokens)}))
        _write(partial / 'tokenizer_config.json',
               json.dumps({'add_bos_token': source.spec.begin_token is not None}))
        _write(partial / 'tokenizer.json', source.tokenizer_json)
        _write(partial / 'chat_template.jinja', source.chat_template)
        save_file(_tensors(source, replaced), partial / 'model.safetensors', {'format': 'pt'})
        partial.rename(folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _write(path: Path, text: str) -> None:
    path.write_text(f'{text}\n', encoding='utf-8')


def _tensors(source: Checkpoint,
             replaced: dict[str, NDArray[np.float32]]) -> dict[str, NDArray[Any]]:
    tensors = {}
    for name, tensor in source.tensors.items():
        rows = replaced[name] if name in replaced else source.rows(name)
        tensors[tensor.huggingface] = rows if rows.ndim == 1 else _halves(source, name, rows)
    return tensors


def _halves(source: Checkpoint, name: str, rows: NDArray[np.float32]) -> NDArray[np.float16]:
    if (largest := np.abs(rows).max()) > np.finfo(np.float16).max:
        raise CheckpointError(f'{source.path}: tensor {name} has a value of magnitude '
                              f'{largest:g}, which float16 does not hold')
    return rows.astype(np.float16)


def _config(source: Checkpoint) -> dict[str, Any]:
    folded = source.scales != WeightScales()
    if isinstance(source, HuggingFaceCheckpoint) and not folded:
        return json.loads((source.path / 'config.json').read_text(encoding='utf-8'))
    spec, model_type = source.spec, 'llama' if folded else source.spec.model_type
    return {
        'model_type': model_type, 'architectures': [f'{model_type.capitalize()}ForCausalLM'],
        'hidden_size': spec.hidden_size, 'num_hidden_layers': spec.layers,
        'num_attention_heads': spec.attention.heads, 'num_key_value_heads': spec.attention.kv_heads,
        'head_dim': spec.attention.head_dim, 'intermediate_size': spec.feed_forward.size,
        'vocab_size': spec.embedding.vocab_size, 'max_position_embeddings': spec.max_context,
        'rms_norm_eps': spec.norm.eps, 'rope_theta': spec.positions.theta,
        'rope_scaling': _rope_scaling(spec), 'hidden_act': spec.feed_forward.activation,
        'tie_word_embeddings': spec.embedding.tied, 'bos_token_id': spec.begin_token,
        'eos_token_id': spec.end_tokens[0] if spec.end_tokens else None,
    }


def _rope_scaling(spec: ModelSpec) -> dict[str, Any] | None:
    factors = set(spec.positions.factors)
    if len(factors) > 1:
        raise CheckpointError(f'{spec.name}: rotary frequencies scaled one by one cannot be '
                              'written; start from the Hugging Face folder of this model')
    return {'rope_type': 'linear', 'factor': factors.pop()} if factors else None
