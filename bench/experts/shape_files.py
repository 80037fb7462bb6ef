"""A store, and a GGUF file for llama.cpp, with random weights of a mixture of experts' shape.

Layers and experts have the same weights, in places and with checksums of their own, so that they
are rounded once; embeddings and each layer's router are their own.
"""

from collections.abc import Iterable
from functools import cached_property, lru_cache
import math
from pathlib import Path
from shutil import disk_usage
from typing import Any
import zlib

import gguf
from gguf import GGMLQuantizationType as Type
import numpy as np
from numpy.typing import NDArray

from bench.support.gguf_checkpoint import (
    ARCHITECTURES,
    add_field,
    byte_tokenizer_fields,
    fields_of,
)
from flash_llm_ros.checkpoint.checkpoint import Checkpoint
from flash_llm_ros.checkpoint.families import family
from flash_llm_ros.checkpoint.gguf_tokenizer import tokenizer_json
from flash_llm_ros.model_spec import ModelSpec
from flash_llm_ros.store import flash_store as names
from flash_llm_ros.store.flash_store import FlashStore
from flash_llm_ros.store.writer import Progress, StoreFormat, StoreWriter

_COMMON = {'hidden_act': 'silu', 'rms_norm_eps': 1e-5, 'rope_theta': 10000.0,
           'max_position_embeddings': 4096, 'rope_parameters': {'rope_theta': 10000.0}}
_GRANITE = {'model_type': 'granitemoe', 'vocab_size': 49155, 'head_dim': 64,
            'num_key_value_heads': 8, 'num_experts_per_tok': 8, 'intermediate_size': 512,
            'tie_word_embeddings': True, 'embedding_multiplier': 1.0, 'residual_multiplier': 1.0,
            'attention_multiplier': 0.125, 'logits_scaling': 1.0, **_COMMON}
# By config.json's names; nothing is scaled.
SHAPES: dict[str, dict[str, Any]] = {
    'granite-3.1-1b': {
        **_GRANITE, 'num_hidden_layers': 24, 'hidden_size': 1024, 'num_attention_heads': 16,
        'num_local_experts': 32},
    'granite-3.1-3b': {
        **_GRANITE, 'num_hidden_layers': 32, 'hidden_size': 1536, 'num_attention_heads': 24,
        'num_local_experts': 40},
    'olmoe': {
        'model_type': 'olmoe', 'vocab_size': 50304, 'num_hidden_layers': 16, 'hidden_size': 2048,
        'num_attention_heads': 16, 'num_key_value_heads': 16, 'head_dim': 128,
        'num_experts': 64, 'num_experts_per_tok': 8, 'intermediate_size': 1024,
        'tie_word_embeddings': False, **_COMMON},
    'qwen3-30b': {
        'model_type': 'qwen3_moe', 'vocab_size': 151936, 'num_hidden_layers': 48,
        'hidden_size': 2048, 'num_attention_heads': 32, 'num_key_value_heads': 4, 'head_dim': 128,
        'num_experts': 128, 'num_experts_per_tok': 8, 'intermediate_size': 6144,
        'moe_intermediate_size': 768, 'norm_topk_prob': True, 'tie_word_embeddings': False,
        **_COMMON},
}
BYTE_TOKENS = 258       # and two special ones, before those without a meaning
_ROUTER_GAIN = 4.0      # standard deviation of scores


class RandomWeights(Checkpoint):
    """Of one of `SHAPES`."""

    doubts, files, chat_template, special_tokens = (), (), '', {}

    def __init__(self, name: str, config: dict[str, Any]) -> None:
        self.path, self.config = Path(name), config
        self.family = family(config['model_type'])
        config = {**self.family.defaults, **config}
        self.scales = self.family.scales(config)
        self.spec: ModelSpec = self.family.spec(config, name, config['tie_word_embeddings'],
                                                (BYTE_TOKENS - 1,), None)
        self._matrix = lru_cache(maxsize=4)(_random)

    @cached_property
    def tokenizer_fields(self) -> dict[str, object]:
        """Of bytes, with unused tokens up to the size of the vocabulary."""
        fields, size = byte_tokenizer_fields(), self.spec.embedding.vocab_size
        tokens, kinds = (fields[f'tokenizer.ggml.{name}'] for name in ('tokens', 'token_type'))
        unused = [f'<unused_{token}>' for token in range(size - len(tokens))]
        return {**fields, 'tokenizer.ggml.tokens': [*tokens, *unused],
                'tokenizer.ggml.token_type': [*kinds, *[1] * len(unused)]}

    @cached_property
    def tokenizer_json(self) -> str:
        return tokenizer_json({'general.architecture': 'llama', **self.tokenizer_fields})

    def shape(self, name: str) -> tuple[int, ...]:
        return self.tensors[name].shape

    def stored_names(self) -> Iterable[str]:
        return ()

    def _stored_rows(self, name: str, start: int, stop: int) -> NDArray[np.float32]:
        shape, part = self.tensors[name].shape, name.rpartition('.')[2]
        if len(shape) == 1:
            return np.ones(stop - start, np.float32)
        if len(shape) == 3:         # every expert's
            return np.broadcast_to(self._matrix(part, shape[1:]), (stop - start, *shape[1:]))
        rows = self._matrix(name if part == 'router' else part, shape)[start:stop]
        if part in ('embedding', 'head'):
            rows = rows.copy()
            rows[:max(BYTE_TOKENS - start, 0)] = 0      # never chosen: texts of whole characters
        return rows


def _random(name: str, shape: tuple[int, int]) -> NDArray[np.float32]:
    random = np.random.default_rng(zlib.crc32(name.encode()))
    gain = _ROUTER_GAIN if name.endswith('router') else 1.0
    return random.standard_normal(shape, np.float32) * np.float32(gain * shape[1] ** -0.5)


class _EncodedOnce(StoreWriter):
    """Neurons that are the same in several places are rounded once."""

    def _write_neurons(self) -> None:
        writer, encoded = self._neuron_writer(self.path / names.NEURONS), {}
        for section, copy in self.geometry.runs():
            if section.name not in encoded:
                encoded[section.name] = [
                    section.codec.encode(part.reshape(-1, section.codec.dim)).reshape(
                        len(part), -1) for part in self._bundles(section, copy)]
            writer.write_encoded(section, encoded[section.name], copy)
            self._neurons_done(section, copy)
        writer.close()


def write_store(weights: RandomWeights, target: Path, progress: Progress) -> FlashStore:
    """In 4 bits; OSError where the disk has not the room."""
    with _EncodedOnce(weights, target, StoreFormat('split', 'int4', 'q4'), progress) as writer:
        needed, free = writer.geometry.file_bytes, disk_usage(writer.path.parent).free
        if free < 1.1 * needed:
            raise OSError(f'{target.parent} has {free / 1e9:.1f} GB free; the neurons of '
                          f'{weights.path} take {needed / 1e9:.1f} GB')
        writer.write()
        writer.publish()
    return FlashStore.open(target)


def write_model_gguf(weights: RandomWeights, path: Path) -> None:
    """The same weights in 4 bits; norms and routers as they are."""
    config = weights.config
    architecture = ARCHITECTURES.get(config['model_type'], config['model_type'])
    writer = gguf.GGUFWriter(path, architecture)
    for key, value in {**fields_of(config, architecture), **weights.tokenizer_fields}.items():
        if value is not None:
            add_field(writer, key, value)
    for name, tensor in weights.tensors.items():
        kind = _kind(name, tensor.shape)
        block, block_bytes = gguf.GGML_QUANT_SIZES[kind]
        writer.add_tensor_info(tensor.gguf, tensor.shape, np.dtype(np.float32),
                               math.prod(tensor.shape) // block * block_bytes, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    packed: dict[str, NDArray[np.uint8]] = {}
    for name, tensor in weights.tensors.items():
        kind, part = _kind(name, tensor.shape), name.rpartition('.')[2]
        if kind == Type.F32:
            writer.write_tensor_data(weights.rows(name))
            continue
        if part not in packed:
            packed[part] = gguf.quantize(
                weights.rows(name, 0, 1 if len(tensor.shape) == 3 else None), kind)
        copies = tensor.shape[0] if len(tensor.shape) == 3 else 1
        writer.write_tensor_data(np.repeat(packed[part], copies, axis=0))
    writer.close()


def _kind(name: str, shape: tuple[int, ...]) -> Type:
    return Type.F32 if len(shape) == 1 or name.endswith('router') else Type.Q4_0
