"""A checkpoint: one model specification and named tensors, read by rows."""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from flash_llm_ros.checkpoint.balanced_keys import (
    BALANCED_PARTS,
    balancing_factors,
    key_sizes,
    keys_are_balanced,
)
from flash_llm_ros.checkpoint.errors import CheckpointError
from flash_llm_ros.checkpoint.families.family import Family, Tensor
from flash_llm_ros.checkpoint.weight_scales import WeightScales
from flash_llm_ros.model_spec import ModelSpec


class Checkpoint(ABC):
    """What `convert` reads. Tensors have the canonical names of `families`."""

    path: Path
    spec: ModelSpec
    scales: WeightScales                # folded into what `rows` gives
    family: Family
    tokenizer_json: str
    chat_template: str                  # empty when the checkpoint has none
    special_tokens: dict[str, str]      # texts of those that the template may name
    doubts: tuple[str, ...]             # sentences on what may not be as its makers meant it
    files: tuple[Path, ...]             # what was read, for the manifest's source hashes

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        """All that there must be, by canonical name."""
        return {tensor.name: tensor for tensor in self.family.tensors(self.spec)}

    @cached_property
    def _key_sizes(self) -> dict[str, NDArray[np.float32]]:
        """Of the layers whose keys were read, [kv_heads, head_dim]."""
        return {}

    @abstractmethod
    def shape(self, name: str) -> tuple[int, ...]:
        """Of the tensor that has a canonical one; raises CheckpointError when it is absent."""

    def rows(self, name: str, start: int = 0, stop: int | None = None) -> NDArray[np.float32]:
        """Rows [start, stop) of a canonical tensor as float32, C-contiguous, scales folded in.

        Keys with a bias are balanced, and queries against them.
        Of experts' tensors, [experts, out, in], a row is what one expert has.
        """
        tensor = self.tensors[name]
        stop = tensor.shape[0] if stop is None else min(stop, tensor.shape[0])
        rows = self._scaled_rows(tensor, start, stop)
        prefix, _, part = name.rpartition('.')
        if part not in BALANCED_PARTS or not keys_are_balanced(self.spec):
            return rows
        factors = balancing_factors(part, self._sizes_of_keys(prefix), self.spec.attention)
        return rows * factors[start:stop].reshape(-1, *[1] * (rows.ndim - 1))

    def _sizes_of_keys(self, layer: str) -> NDArray[np.float32]:
        if layer not in self._key_sizes:
            tensors = [self.tensors[f'{layer}.{part}']
                       for part in ('k', 'k_bias', 'attention_norm')]
            rows = [self._scaled_rows(tensor, 0, tensor.shape[0]) for tensor in tensors]
            for tensor, numbers in zip(tensors, rows, strict=True):
                if not np.isfinite(numbers).all():      # which would make queries be so, too
                    raise CheckpointError(f'{self.path}: tensor {tensor.name} holds NaN or '
                                          'infinity')
            self._key_sizes[layer] = key_sizes(self.spec, *rows)
        return self._key_sizes[layer]

    def _scaled_rows(self, tensor: Tensor, start: int, stop: int) -> NDArray[np.float32]:
        rows = self._stored_rows(tensor.name, tensor.first_row + start, tensor.first_row + stop)
        scale = self.scales.of(tensor.name, self.spec)
        return rows if scale == 1 else rows * np.float32(scale)

    @abstractmethod
    def _stored_rows(self, name: str, start: int, stop: int) -> NDArray[np.float32]:
        """Rows of the tensor that the checkpoint has it in."""

    @abstractmethod
    def stored_names(self) -> Iterable[str]:
        """All tensors as the checkpoint itself calls them."""

    def check_tensors(self) -> None:
        """Raise CheckpointError for a tensor of another shape, and for one that nobody reads."""
        known = {name for tensor in self.tensors.values()
                 for name in (*tensor.huggingface_names, tensor.huggingface_now, tensor.fused,
                              tensor.blocks, tensor.scales, tensor.gguf)}
        if self.spec.embedding.tied:
            known.add('lm_head.weight')     # which is the embedding once more
        for name in self.stored_names():
            if name not in known and not self.family.elsewhere(name, self.spec):
                raise CheckpointError(
                    f'{self.path}: tensor {name} is none of the {self.spec.model_type} family '
                    'here; answers without it would be wrong: this model is not supported')
        for name, tensor in self.tensors.items():
            if (found := self.shape(name)) != tensor.stored_shape:
                raise CheckpointError(f'{self.path}: tensor {name} has shape {found}; '
                                      f'the configuration asks for {tensor.stored_shape}')


def in_halves(rows: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """Rows that turn together are neighbours in the files, half a head apart in the engine."""
    pairs = rows.reshape(heads, len(rows) // heads // 2, 2, -1)
    return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(rows.shape)
