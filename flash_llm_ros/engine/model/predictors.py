"""The ONNX predictors: which neurons the next step needs, one session a layer."""

import numpy as np
from numpy.typing import NDArray

from flash_llm_ros.engine.model.graph_loader import Feeds, GraphLoader, graph_errors
from flash_llm_ros.onnx_runtime import ort
from flash_llm_ros.store.flash_store import FlashStore
from flash_llm_ros.store.predictor_form import PredictorForm, predictor_layout


class PredictorStack:
    """Scores a layer's neurons from the FFN's input (paper section 3.2)."""

    def __init__(self, store: FlashStore) -> None:
        """Load those of a calibrated store; FlashLlmError: STORE_CORRUPT, READ_FAILED.

        Each computes in one thread: it is done before another one has woken up.
        """
        spec, calibration = store.manifest.model, store.manifest.calibration
        self._input = np.zeros((1, spec.hidden_size), np.float32)
        self._wanted = np.zeros((1, spec.feed_forward.size), np.uint8)
        self._thresholds = np.array(calibration.thresholds, np.float32).reshape(-1, 1)
        self._loader = GraphLoader(str(store.path), 1, prepack=True)
        self._bindings = []
        forms = [PredictorForm(facts.kind, facts.size) for facts in calibration.predictors]
        with store.tensors(store.predictor_weights) as tensors:
            tensors.require(predictor_layout(spec, forms))
            for layer in range(spec.layers):
                graph = store.predictor_graph(layer)
                session = self._loader.load(store.content(graph), graph, tensors,
                                            f'predictors.{layer}.', self._probe)
                with graph_errors(graph):
                    self._bindings.append((graph, session, self._bind(session, layer)))
            tensors.drop_page_cache()

    def wanted(self, layer: int, ffn_input: NDArray[np.float32]) -> NDArray[np.uint8]:
        """1 for each neuron predicted to be needed, uint8 [ffn]; valid until the next call."""
        self._input[0] = ffn_input
        graph, session, binding = self._bindings[layer]
        with graph_errors(graph):
            session.run_with_iobinding(binding)
        return self._wanted[0]

    def _bind(self, session: ort.InferenceSession, layer: int) -> ort.IOBinding:
        binding = session.io_binding()
        for name, array in (('ffn_input', self._input), ('threshold', self._thresholds[layer])):
            binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(array))
        binding.bind_ortvalue_output('wanted', ort.OrtValue.ortvalue_from_numpy(self._wanted))
        return binding

    def _probe(self) -> Feeds:
        x = np.sin(np.arange(self._input.size, dtype=np.float32)).reshape(1, -1)
        return {'ffn_input': x, 'threshold': np.zeros(1, np.float32)}
