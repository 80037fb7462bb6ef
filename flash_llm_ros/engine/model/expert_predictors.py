"""The ONNX predictors of experts: which ones the next layer is likely to use."""

import numpy as np
from numpy.typing import NDArray

from flash_llm_ros.engine.model.token_graphs import TokenGraphs
from flash_llm_ros.store.flash_store import FlashStore, predictor_graph
from flash_llm_ros.store.router_outputs import LIKELY


class ExpertPredictors:
    """The next layer's router, given this layer's input, of each layer of `foreseeing_layers`."""

    def __init__(self, store: FlashStore, chunk: int) -> None:
        """For up to `chunk` tokens at once; FlashLlmError: STORE_CORRUPT, READ_FAILED."""
        spec = store.manifest.model
        self._likely = np.zeros((chunk, spec.feed_forward.experts.active), np.int64)
        self._graphs = TokenGraphs(store, {layer: (predictor_graph(layer), layer + 1)
                                           for layer in spec.foreseeing_layers},
                                   {LIKELY: self._likely})

    def likely(self, layer: int, ffn_input: NDArray[np.float32]) -> NDArray[np.int64]:
        """Experts of layer `layer` + 1, the likeliest first, int64 [tokens, active].

        `ffn_input`: float32 [tokens, d]. Valid until the next call.
        """
        self._graphs.run(layer, ffn_input)
        return self._likely[:len(ffn_input)]
