"""ONNX graphs of layers that are given what a layer's block is given, and fill arrays."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flash_llm_ros.engine.model.graph_loader import Feeds, GraphLoader, graph_errors
from flash_llm_ros.onnx_runtime import ort
from flash_llm_ros.store.flash_store import RESIDENT, FlashStore
from flash_llm_ros.store.resident_layout import attention_layout, router_matrix


class TokenGraphs:
    """One graph a layer, each with a router's matrix."""

    def __init__(self, store: FlashStore, graphs: Mapping[int, tuple[str, int]],
                 outputs: Mapping[str, NDArray[Any]]) -> None:
        """`graphs`: name of a layer's, and whose router it has; `outputs`: arrays [chunk, ...].

        Raises FlashLlmError: STORE_CORRUPT, READ_FAILED.
        """
        spec, resident = store.manifest.model, store.manifest.resident
        self._outputs = outputs
        self._token = np.zeros((1, spec.hidden_size), np.float32)
        self._loader = GraphLoader(str(store.path), 1, prepack=resident != 'fp32')
        self._names = {layer: name for layer, (name, _) in graphs.items()}
        self._sessions, self._single = {}, {}
        with store.tensors(RESIDENT) as tensors:
            tensors.require(attention_layout(spec, resident))
            for layer, (name, of) in graphs.items():
                self._sessions[layer] = self._loader.load(
                    store.content(name), name, tensors, f'{router_matrix(of)}.', self._probe)
                with graph_errors(name):
                    self._single[layer] = self._bind(layer, self._token)
            tensors.drop_page_cache()

    def run(self, layer: int, x: NDArray[np.float32]) -> None:
        """Fill the first rows of the outputs, of x, float32 [tokens, d]."""
        with graph_errors(self._names[layer]):
            if len(x) == 1:
                self._token[:] = x
                binding = self._single[layer]
            else:
                binding = self._bind(layer, x)
            self._sessions[layer].run_with_iobinding(binding)

    def _bind(self, layer: int, x: NDArray[np.float32]) -> ort.IOBinding:
        binding = self._sessions[layer].io_binding()
        binding.bind_ortvalue_input('ffn_input', ort.OrtValue.ortvalue_from_numpy(x[None]))
        for name, array in self._outputs.items():
            binding.bind_ortvalue_output(
                name, ort.OrtValue.ortvalue_from_numpy(array[None, :len(x)]))
        return binding

    def _probe(self) -> Feeds:
        values = np.sin(np.arange(2 * self._token.size, dtype=np.float32))
        return {'ffn_input': values.reshape(1, 2, -1)}
