"""The ONNX predictors: which neurons the next step needs, one session a layer."""

import numpy as np
from numpy.typing import NDArray
import onnxruntime as ort

from flash_llm_ros.engine.model.graph_loader import Feeds, GraphLoader
from flash_llm_ros.store.flash_store import FlashStore
from flash_llm_ros.store.manifest import Calibration
from flash_llm_ros.store.tensor_file import TensorFile


class PredictorStack:
    """Scores a layer's neurons from the FFN's input (paper section 3.2)."""

    def __init__(self, store: FlashStore, threads: int, sparsity: float,
                 scores: bool = False) -> None:
        spec, calibration = store.manifest.model, store.manifest.calibration
        self._input = np.zeros((1, spec.hidden_size), np.float32)
        self._wanted = np.zeros((1, spec.feed_forward.size), np.uint8)
        self._scores = np.ones((1, spec.feed_forward.size), np.float32)
        self._scored = scores
        thresholds = at_sparsity(calibration.predictor_thresholds, sparsity)
        self._thresholds = thresholds.astype(np.float32).reshape(-1, 1)
        self._loader = GraphLoader(str(store.path), threads, prepack=True)
        self._bindings = []
        with TensorFile(store.path / store.predictor_weights) as tensors:
            for layer in range(spec.layers):
                session = self._loader.load(store.content(store.predictor_graph(layer)), tensors,
                                            f'predictors.{layer}.', self._probe)
                self._bindings.append((session, self._bind(session, layer)))
            tensors.drop_page_cache()

    def wanted(self, layer: int, ffn_input: NDArray[np.float32]) -> NDArray[np.uint8]:
        """1 for each neuron predicted to be needed, uint8 [ffn]; valid until the next call."""
        self._input[0] = ffn_input
        session, binding = self._bindings[layer]
        session.run_with_iobinding(binding)
        return self._wanted[0]

    @property
    def scores(self) -> NDArray[np.float32]:
        """What the latest `wanted` was decided by, float32 [ffn], if they were asked for.

        Ones, where they were not, or where the store is older than its graphs' scores.
        """
        return self._scores[0]

    def _bind(self, session: ort.InferenceSession, layer: int) -> ort.IOBinding:
        binding = session.io_binding()
        for name, array in (('ffn_input', self._input), ('threshold', self._thresholds[layer])):
            binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(array))
        binding.bind_ortvalue_output('wanted', ort.OrtValue.ortvalue_from_numpy(self._wanted))
        if self._scored and 'score' in (output.name for output in session.get_outputs()):
            binding.bind_ortvalue_output('score', ort.OrtValue.ortvalue_from_numpy(self._scores))
        return binding

    def _probe(self) -> Feeds:
        x = np.sin(np.arange(self._input.size, dtype=np.float32)).reshape(1, -1)
        return {'ffn_input': x, 'threshold': np.zeros(1, np.float32)}


def down_norms(store: FlashStore) -> list[NDArray[np.float32]]:
    """Norms of the down columns, float32 [ffn] a layer; of a split store that is calibrated."""
    with TensorFile(store.path / store.predictor_weights) as tensors:
        norms = [tensors.read(f'predictors.{layer}.down_norm')
                 for layer in range(store.manifest.model.layers)]
        tensors.drop_page_cache()
    return norms


def activation_limits(calibration: Calibration, sparsity: float,
                      norms: list[NDArray[np.float32]]) -> list[NDArray[np.float32]]:
    """What abs(h) must exceed for a down column to be used, float32 [ffn] a layer."""
    with np.errstate(divide='ignore', invalid='ignore'):
        return [(threshold / norm ** calibration.norm_exponent).astype(np.float32)
                for threshold, norm in zip(at_sparsity(calibration.thresholds, sparsity), norms,
                                           strict=True)]


def at_sparsity(table: dict[str, list[float]], sparsity: float) -> NDArray[np.float64]:
    """One threshold a layer, between the calibrated sparsities interpolated linearly.

    Where the table does not say otherwise, sparsity 0 is threshold 0: only zeros are left out.
    """
    table = {'0.00': [0.0] * len(next(iter(table.values()))), **table}
    points = sorted(table, key=float)
    columns = np.array([table[point] for point in points])
    grid = [float(point) for point in points]
    return np.array([np.interp(sparsity, grid, column) for column in columns.T])
