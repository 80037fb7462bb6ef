"""Attention in the native core, whose matrices are sections of the neuron file."""

from typing import Any

import numpy as np

from flash_llm_ros.engine.memory.core import attention_shape
from flash_llm_ros.engine.memory.window import Window
from flash_llm_ros.engine.model.attention_part import Array, AttentionPart
from flash_llm_ros.engine.plan import PlanRow
from flash_llm_ros.store.flash_store import RESIDENT, FlashStore
from flash_llm_ros.store.resident_layout import attention_layout


class CoreAttention(AttentionPart):
    """Of models that ModelSpec.core_attention is true for."""

    def __init__(self, store: FlashStore, cache_type: str, context: int, chunk: int) -> None:
        """`cache_type`: int8 or int16; the others as `AttentionPart`."""
        super().__init__(store, context, chunk)
        self.cache_type = cache_type

    def cache_bytes(self, context: int) -> int:
        return self._spec.layers * int(np.prod(self._shape(context).cache_shape()))

    def estimate(self) -> list[PlanRow]:
        return [PlanRow('norms', self._store.manifest.files[RESIDENT]['bytes'])]

    def load(self) -> None:
        """Raises FlashLlmError: STORE_CORRUPT, READ_FAILED."""
        layout = attention_layout(self._spec, self._store.manifest.resident)
        with self._store.tensors(RESIDENT) as tensors:
            tensors.require(layout)
            self._vectors = {name: tensors.read(name) for name in layout}
            tensors.drop_page_cache()

    def buffers(self) -> list[PlanRow]:
        return [self.cache_row()]

    def allocate(self) -> None:
        super().allocate()
        shape = self._shape(self.context).cache_shape()
        self._cache = np.full((self._spec.layers, *shape), 0, np.uint8)  # touches every page
        self._normed = np.zeros_like(self._ffn_input)

    def attach(self, window: Window) -> None:
        self._core = window.core
        self._core.set_attention(self._shape(self.context), self._spec.norm.eps)
        for layer in range(self._spec.layers):
            vectors = [self._vectors.get(f'layers.{layer}.{name}')
                       for name in ('attention_norm', 'ffn_norm', 'qkv_bias', 'o_bias')]
            self._core.add_attention(window.section('qkv', layer), window.section('o', layer),
                                     *vectors, self._cache[layer])

    def run(self, layer: int, tokens: int, position: int) -> tuple[Array, Array]:
        ffn_input, residual = self._ffn_input[:tokens], self.hidden(layer + 1, tokens)
        self._core.attention(layer, self.hidden(layer, tokens), position, residual, ffn_input)
        return ffn_input, residual

    def rows(self, count: int) -> list[memoryview]:
        """Whole tiles: what lies in the last one behind `count` tokens is never looked at."""
        tiles = -(-count // self._shape(self.context).tile_tokens)
        return [memoryview(head[:tiles]).cast('B')
                for layer in self._cache for head in layer] if count else []

    def final_norm(self, first: int, end: int) -> Array:
        rows = self.hidden(self._spec.layers, end)[first:]
        normed = self._normed[:len(rows)]
        self._core.rms_norm(rows, self._vectors['final_norm'], normed)
        return normed

    def _shape(self, context: int) -> Any:
        return attention_shape(self._spec, context, self._chunk, self.cache_type)
