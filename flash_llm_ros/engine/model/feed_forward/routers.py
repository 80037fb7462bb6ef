"""The routers of experts: ONNX graphs, of which each layer with experts has one."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from flash_llm_ros.engine.model.feed_forward.block import Array
from flash_llm_ros.engine.model.graph_loader import Feeds, GraphLoader, graph_errors
from flash_llm_ros.onnx_runtime import ort
from flash_llm_ros.store.flash_store import RESIDENT, FlashStore, router_graph
from flash_llm_ros.store.resident_layout import attention_layout, router_matrix
from flash_llm_ros.store.router_graph import EXPERT_IDS, EXPERT_WEIGHTS, SHARED_WEIGHT


class Routers:
    """Choose a layer's experts for each token of a pass; what they choose lies here."""

    def __init__(self, store: FlashStore, chunk: int) -> None:
        """`chunk`: the most tokens of a pass."""
        spec = store.manifest.model
        experts = spec.feed_forward.experts
        self._store, self._layers = store, spec.routed_layers
        self.ids = np.zeros((chunk, experts.active), np.int64)
        self._weights = np.zeros((chunk, experts.active), np.float32)
        # What the block of every token is weighed by, where it is.
        self.shared_weights = np.zeros((chunk, 1), np.float32)
        self._outputs: dict[str, NDArray[Any]] = {EXPERT_IDS: self.ids,
                                                  EXPERT_WEIGHTS: self._weights}
        if experts.shared_weighed:
            self._outputs[SHARED_WEIGHT] = self.shared_weights
        self._token = np.zeros((1, spec.hidden_size), np.float32)

    def load(self) -> None:
        """Raises FlashLlmError: STORE_CORRUPT, READ_FAILED."""
        store = self._store
        self._loader = GraphLoader(str(store.path), 1, prepack=store.manifest.resident != 'fp32')
        self._sessions, self._decode = {}, {}
        with store.tensors(RESIDENT) as tensors:
            tensors.require(attention_layout(store.manifest.model, store.manifest.resident))
            for layer in self._layers:
                name = router_graph(layer)
                self._sessions[layer] = self._loader.load(
                    store.content(name), name, tensors, f'{router_matrix(layer)}.', self._probe)
                with graph_errors(name):
                    self._decode[layer] = self._bind(layer, self._token)
            tensors.drop_page_cache()

    def choose(self, layer: int, x: Array) -> tuple[NDArray[np.int64], Array]:
        """Ids and weights of the experts of tokens whose block is given x, float32 [tokens, d].

        Both [tokens, active], valid until the next call, as `shared_weights` are.
        """
        with graph_errors(router_graph(layer)):
            if len(x) == 1:
                self._token[:] = x
                binding = self._decode[layer]
            else:
                binding = self._bind(layer, x)
            self._sessions[layer].run_with_iobinding(binding)
        return self.ids[:len(x)], self._weights[:len(x)]

    def _bind(self, layer: int, x: Array) -> ort.IOBinding:
        binding = self._sessions[layer].io_binding()
        binding.bind_ortvalue_input('ffn_input', ort.OrtValue.ortvalue_from_numpy(x[None]))
        for name, array in self._outputs.items():
            binding.bind_ortvalue_output(
                name, ort.OrtValue.ortvalue_from_numpy(array[None, :len(x)]))
        return binding

    def _probe(self) -> Feeds:
        values = np.sin(np.arange(2 * self._token.size, dtype=np.float32))
        return {'ffn_input': values.reshape(1, 2, -1)}
