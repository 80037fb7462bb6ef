"""Attention in ONNX Runtime: the layers' graphs, with norms and an in-place KV cache."""

from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flash_llm_ros.engine.model.attention_part import Array, AttentionPart
from flash_llm_ros.engine.model.graph_loader import Feeds, GraphLoader, check_output, graph_errors
from flash_llm_ros.engine.model.rotary_tables import rotary_inputs
from flash_llm_ros.engine.plan import PlanRow
from flash_llm_ros.onnx_runtime import ort
from flash_llm_ros.store.flash_store import FINAL_GRAPH, RESIDENT, FlashStore, layer_graph
from flash_llm_ros.store.resident_layout import POSITIONS, attention_layout, float_type

# Of a thread of ONNX Runtime: 64 KiB of stack, as much again in blocks of its own, the allocator.
_THREAD_BYTES = 160_000


class GraphAttention(AttentionPart):
    """One ONNX Runtime session a layer; keys and values are updated in place."""

    def __init__(self, store: FlashStore, threads: int, context: int, chunk: int) -> None:
        super().__init__(store, context, chunk)
        self._threads = threads
        self._kv_type = float_type(store.manifest.resident)
        self.cache_type = np.dtype(self._kv_type).name

    def cache_bytes(self, context: int) -> int:
        spec = self._spec
        return (2 * spec.layers * spec.attention.kv_width * context
                * np.dtype(self._kv_type).itemsize)

    def estimate(self) -> list[PlanRow]:
        return [PlanRow('attention weights', self._store.manifest.files[RESIDENT]['bytes'])]

    def load(self) -> None:
        """Raises FlashLlmError: STORE_CORRUPT, READ_FAILED."""
        store = self._store
        self._loader = GraphLoader(str(store.path), self._threads,
                                   prepack=store.manifest.resident != 'fp32')
        with store.tensors(RESIDENT) as tensors:
            tensors.require(attention_layout(self._spec, store.manifest.resident))
            self._sessions = [self._loader.load(store.content(name), name, tensors,
                                                f'layers.{layer}.', partial(self._probe, layer))
                              for layer, name in enumerate(map(layer_graph,
                                                               range(self._spec.layers)))]
            self._positions = (tensors.read(POSITIONS) if self._spec.positions.kind == 'learned'
                               else None)
            tensors.drop_page_cache()
        self._final = GraphLoader(str(store.path), 1, prepack=False).load(
            store.content(FINAL_GRAPH), FINAL_GRAPH)

    def warm(self) -> None:
        """Run one layer, so that the code of a layer is in memory."""
        with graph_errors(layer_graph(0)):
            self._sessions[0].run(None, self._probe(0))

    def buffers(self) -> list[PlanRow]:
        rows = [self.cache_row()]
        if self._threads > 1:
            threads = (self._threads - 1) * self._spec.layers
            rows.append(PlanRow('threads', threads * _THREAD_BYTES,
                                f'{threads} of ONNX Runtime, which has some for each layer'))
        return rows

    def allocate(self) -> None:
        super().allocate()
        spec, context = self._spec, self.context
        shape = (spec.layers, 2, 1, spec.attention.kv_heads, context, spec.attention.head_dim)
        self._cache = np.full(shape, 0, self._kv_type)      # full() touches every page
        self._rotary = rotary_inputs(spec, context, self._kv_type)
        self._last_position, self._total_length = np.zeros((2, 1), np.int32)
        self._decode = []
        for layer in range(spec.layers):
            with graph_errors(layer_graph(layer)):
                self._decode.append(self._bind(layer, 1))

    def run(self, layer: int, tokens: int, position: int) -> tuple[Array, Array]:
        self._last_position[0] = position + tokens - 1
        self._total_length[0] = position + tokens
        if layer == 0 and self._positions is not None:
            self.hidden(0, tokens)[:] += self._positions[position:position + tokens]
        with graph_errors(layer_graph(layer)):
            binding = self._decode[layer] if tokens == 1 else self._bind(layer, tokens)
            self._sessions[layer].run_with_iobinding(binding)
        return self._ffn_input[:tokens], self.hidden(layer + 1, tokens)

    def rows(self, count: int) -> list[memoryview]:
        places = self._cache.reshape(-1, self.context, self._spec.attention.head_dim)[:, :count]
        return [memoryview(place).cast('B') for place in places] if count else []

    def final_norm(self, first: int, end: int) -> Array:
        hidden = self.hidden(self._spec.layers, end)[None, first:]
        with graph_errors(FINAL_GRAPH):
            normed = self._final.run(None, {'hidden': hidden})[0][0]
        check_output(FINAL_GRAPH, normed, (end - first, self._spec.hidden_size))
        return normed

    def _bind(self, layer: int, tokens: int) -> ort.IOBinding:
        key, value = self._cache[layer]
        inputs: dict[str, NDArray[Any]] = {
            'hidden': self.hidden(layer, tokens)[None], 'past_key': key, 'past_value': value,
            'last_position': self._last_position, 'total_length': self._total_length,
            **self._rotary[layer]}
        outputs = {'ffn_input': self._ffn_input[None, :tokens],
                   'residual': self.hidden(layer + 1, tokens)[None],
                   'present_key': key, 'present_value': value}
        binding = self._sessions[layer].io_binding()
        for name, array in inputs.items():
            binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(array))
        for name, array in outputs.items():
            binding.bind_ortvalue_output(name, ort.OrtValue.ortvalue_from_numpy(array))
        return binding

    def _probe(self, layer: int) -> Feeds:
        """Inputs of a layer graph with a context of two tokens."""
        spec = self._spec
        cache = np.zeros((1, spec.attention.kv_heads, 2, spec.attention.head_dim), self._kv_type)
        hidden = np.sin(np.arange(2 * spec.hidden_size, dtype=np.float32)).reshape(1, 2, -1)
        return {'hidden': hidden, 'past_key': cache, 'past_value': cache.copy(),
                'last_position': np.array([1], np.int32), 'total_length': np.array([2], np.int32),
                **rotary_inputs(spec, 2, self._kv_type)[layer]}
