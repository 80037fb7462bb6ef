"""The ONNX predictors of experts: which ones the next layer is likely to use."""

import numpy as np
from numpy.typing import NDArray

from flash_llm_ros.engine.model.graph_loader import Feeds, GraphLoader, graph_errors
from flash_llm_ros.onnx_runtime import ort
from flash_llm_ros.store.flash_store import RESIDENT, FlashStore, predictor_graph
from flash_llm_ros.store.resident_layout import router_matrix
from flash_llm_ros.store.tensor_file import TensorFile


class ExpertPredictors:
    """The next layer's router, given this layer's input, of each layer of `foreseeing_layers`."""

    def __init__(self, store: FlashStore) -> None:
        """Load them, each with a router of its own; FlashLlmError: STORE_CORRUPT, READ_FAILED."""
        spec = store.manifest.model
        self._input = np.zeros((1, spec.hidden_size), np.float32)
        self._likely = np.zeros((1, spec.feed_forward.experts.active), np.int64)
        self._loader = GraphLoader(str(store.path), 1, prepack=store.manifest.resident != 'fp32')
        self._bindings = {}
        with TensorFile(store.path / RESIDENT) as tensors:
            for layer in spec.foreseeing_layers:
                graph = predictor_graph(layer)
                session = self._loader.load(store.content(graph), graph, tensors,
                                            f'{router_matrix(layer + 1)}.', self._probe)
                with graph_errors(graph):
                    self._bindings[layer] = graph, session, self._bind(session)
            tensors.drop_page_cache()

    def likely(self, layer: int, ffn_input: NDArray[np.float32]) -> NDArray[np.int64]:
        """Experts of layer `layer` + 1, the likeliest first, int64 [active]; until the next call.

        `ffn_input`: of a token, float32 [d].
        """
        self._input[0] = ffn_input
        graph, session, binding = self._bindings[layer]
        with graph_errors(graph):
            session.run_with_iobinding(binding)
        return self._likely[0]

    def _bind(self, session: ort.InferenceSession) -> ort.IOBinding:
        binding = session.io_binding()
        binding.bind_ortvalue_input('ffn_input', ort.OrtValue.ortvalue_from_numpy(self._input))
        binding.bind_ortvalue_output('likely', ort.OrtValue.ortvalue_from_numpy(self._likely))
        return binding

    def _probe(self) -> Feeds:
        return {'ffn_input': np.sin(np.arange(self._input.size, dtype=np.float32)).reshape(1, -1)}
