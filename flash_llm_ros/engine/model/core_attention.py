"""Attention in the native core, whose matrices are sections of the neuron file.

Layers with a convolution in its place have that of `core_convolution`.
"""

from typing import Any

import numpy as np

from flash_llm_ros.engine.memory.core import attention_shape
from flash_llm_ros.engine.memory.window import Window
from flash_llm_ros.engine.model.attention_part import Array, AttentionPart
from flash_llm_ros.engine.model.convolution_cache import (
    STRIDE,
    ConvolutionCache,
    ConvolutionShape,
)
from flash_llm_ros.engine.model.core_convolution import CoreConvolution
from flash_llm_ros.engine.plan import PlanRow
from flash_llm_ros.store.flash_store import RESIDENT, FlashStore
from flash_llm_ros.store.resident_layout import attention_layout, layer_vectors

# Arguments of the core's add_attention -> names of a layer's vectors.
_VECTORS = {'norm': 'attention_norm', 'feed_forward_norm': 'ffn_norm', 'qkv_bias': 'qkv_bias',
            'o_bias': 'o_bias', 'query_norm': 'q_norm', 'key_norm': 'k_norm',
            'output_norm': 'attention_output_norm', 'sinks': 'sinks'}


class CoreAttention(AttentionPart):
    """Of models that ModelSpec.core_attention is true for."""

    def __init__(self, store: FlashStore, cache_type: str, context: int, chunk: int,
                 guesses: int) -> None:
        """`cache_type`: int8 or int16; `guesses`: of a pass at most; else as `AttentionPart`."""
        super().__init__(store, context, chunk)
        self._kv_type = cache_type
        self._convolved_type = np.dtype(np.float16 if cache_type == 'int8' else np.float32)
        self._convolved = (None if self._spec.convolution is None else
                           ConvolutionShape(self._spec.convolution.before,
                                            max(guesses, STRIDE)))
        self.cache_type = cache_type + (f', of convolutions in {self._convolved_type}'
                                        if self._spec.convolution else '')

    def cache_bytes(self, context: int) -> int:
        return sum(kind.itemsize * int(np.prod(shape)) for shape, kind in self._caches(context))

    def estimate(self) -> list[PlanRow]:
        routers = ' and routers' if self._spec.routed_layers else ''
        return [PlanRow(f'norms{routers}', self._store.manifest.files[RESIDENT]['bytes'])]

    def load(self) -> None:
        """Raises FlashLlmError: STORE_CORRUPT, READ_FAILED."""
        names = [f'layers.{layer}.{name}' for layer in range(self._spec.layers)
                 for name in layer_vectors(self._spec, layer)]
        with self._store.tensors(RESIDENT) as tensors:
            tensors.require(attention_layout(self._spec, self._store.manifest.resident))
            self._vectors = {name: tensors.read(name) for name in [*names, 'final_norm']}
            tensors.drop_page_cache()

    def buffers(self) -> list[PlanRow]:
        return [self.cache_row()]

    def allocate(self) -> None:
        super().allocate()
        spec = self._spec
        self._cache = [np.full(shape, 0, kind)      # touches every page
                       for shape, kind in self._caches(self.context)]
        self._tile_tokens = self._shape(self.context).tile_tokens
        self._rings = {(window, cache.shape[1] * self._tile_tokens)
                       for layer, cache in enumerate(self._cache)
                       if (window := spec.attention.window(layer)) and not spec.convolves(layer)}
        self._convolutions: dict[int, CoreConvolution] = {}
        self._numbers: dict[int, int] = {}      # layers -> the core's own numbers of them
        self._normed = np.zeros_like(self._ffn_input)
        self._block = np.zeros_like(self._ffn_input) if self._spec.norm.output else None

    def attach(self, window: Window) -> None:
        self._core, spec = window.core, self._spec
        self._core.set_attention(self._shape(self.context), spec.norm.eps)
        if self._convolved is not None:
            scratch = (np.zeros((4, *self._ffn_input.shape), np.float32),
                       np.zeros((spec.convolution.before + self._chunk, spec.hidden_size),
                                self._convolved_type))
        for layer in range(spec.layers):
            if spec.convolves(layer):
                self._convolutions[layer] = CoreConvolution(
                    window, layer, ConvolutionCache(self._convolved, self._cache[layer]), scratch,
                    self._vector(layer, 'conv').reshape(spec.hidden_size, -1),
                    (self._vector(layer, 'attention_norm'), self._vector(layer, 'ffn_norm')))
                continue
            rotation = int(spec.local(layer)) if spec.positions.turns(layer) else -1
            self._numbers[layer] = self._core.add_attention(
                window.section('qkv', layer), window.section('o', layer), self._cache[layer],
                rotation=rotation, window=spec.attention.window(layer),
                norm_heads=spec.attention.qk_norm == 'head',
                **{argument: self._vector(layer, name) for argument, name in _VECTORS.items()})

    def run(self, layer: int, tokens: int, position: int) -> tuple[Array, Array]:
        ffn_input, residual = self._ffn_input[:tokens], self.hidden(layer + 1, tokens)
        hidden = self.hidden(layer, tokens)
        if layer:
            self._add_block(layer - 1, 0, hidden)
        if layer in self._convolutions:
            self._convolutions[layer].run(hidden, position, residual, ffn_input)
        else:
            self._core.attention(self._numbers[layer], hidden, position, residual, ffn_input)
        if self._block is None:
            return ffn_input, residual
        self._block[:tokens] = 0
        return ffn_input, self._block[:tokens]

    def section_inputs(self, layer: int, tokens: int) -> dict[str, Array]:
        hidden, norm = self.hidden(layer, tokens), self._vector(layer, 'attention_norm')
        normed = hidden.copy()
        if norm is not None:
            self._core.rms_norm(hidden, norm, normed)
        if layer in self._convolutions:
            return {'conv_in': normed, 'conv_out': self._convolutions[layer].convolved(tokens)}
        attended = np.empty((tokens, self._spec.attention.query_width), np.float32)
        self._core.attended(attended)
        return {'qkv': normed, 'o': attended}

    def rows(self, count: int) -> list[memoryview]:
        """Whole tiles: what lies in the last one behind `count` tokens is never looked at.

        All tiles of a layer whose tokens see so few others that it keeps no more of them, and
        all last rows of a convolution.
        """
        if not count:
            return []
        tiles = -(-count // self._tile_tokens)
        places = [place for layer, cache in enumerate(self._cache) for place in
                  ([cache[:self._convolved.rows(count)]] if self._spec.convolves(layer) else
                   [head[:tiles] for head in cache])]
        return [memoryview(place).cast('B') for place in places]

    def reach(self, count: int, end: int) -> int:
        if self._convolved is not None:
            count = self._convolved.reach(count, end)
        there = all(end - max(0, count + 1 - window) <= tokens for window, tokens in self._rings)
        return count if there else 0

    def final_norm(self, first: int, end: int) -> Array:
        normed = self._normed[:end - first]
        normed[:] = self.hidden(self._spec.layers, end)[first:]
        self._add_block(self._spec.layers - 1, first, normed)
        self._core.rms_norm(normed, self._vectors['final_norm'], normed)
        return normed

    def _add_block(self, layer: int, first: int, stream: Array) -> None:
        """What a layer's block gave tokens from `first` on, where that is normed before."""
        if self._block is not None:
            self._core.add_rms_norm(self._block[first:first + len(stream)],
                                    self._vector(layer, 'ffn_output_norm'), stream)

    def _vector(self, layer: int, name: str) -> Array | None:
        return self._vectors.get(f'layers.{layer}.{name}')

    def _caches(self, context: int) -> list[tuple[tuple[int, ...], np.dtype]]:
        """Of each layer: a ring of tiles where its tokens see fewer others than the context has.

        Of a convolution rows of what it is of.
        """
        spec, shape = self._spec, self._shape(context)
        return [((self._convolved.rows(context), spec.hidden_size), self._convolved_type)
                if spec.convolves(layer) else
                (shape.cache_shape(spec.attention.window(layer)), np.dtype(np.uint8))
                for layer in range(spec.layers)]

    def _shape(self, context: int) -> Any:
        return attention_shape(self._spec, context, self._chunk, self._kv_type)
