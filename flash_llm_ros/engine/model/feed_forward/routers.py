"""The routers of experts, ONNX graphs."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from flash_llm_ros.engine.model.feed_forward.block import Array
from flash_llm_ros.engine.model.token_graphs import TokenGraphs
from flash_llm_ros.store.flash_store import FlashStore, router_graph
from flash_llm_ros.store.router_outputs import EXPERT_IDS, EXPERT_WEIGHTS, SHARED_WEIGHT


class Routers:
    """Choose a layer's experts for each token of a pass."""

    def __init__(self, store: FlashStore, chunk: int) -> None:
        """`chunk`: the most tokens of a pass."""
        self._store, experts = store, store.manifest.model.feed_forward.experts
        self.ids = np.zeros((chunk, experts.active), np.int64)
        self._weights = np.zeros((chunk, experts.active), np.float32)
        # What the block of every token is weighed by, where it is.
        self.shared_weights = np.zeros((chunk, 1), np.float32)
        self._outputs: dict[str, NDArray[Any]] = {EXPERT_IDS: self.ids,
                                                  EXPERT_WEIGHTS: self._weights}
        if experts.shared_weighed:
            self._outputs[SHARED_WEIGHT] = self.shared_weights

    def load(self) -> None:
        """Raises FlashLlmError: STORE_CORRUPT, READ_FAILED."""
        layers = self._store.manifest.model.routed_layers
        self._graphs = TokenGraphs(self._store, {layer: (router_graph(layer), layer)
                                                 for layer in layers}, self._outputs)

    def choose(self, layer: int, x: Array) -> tuple[NDArray[np.int64], Array]:
        """Ids and weights of the experts of tokens whose block is given x, float32 [tokens, d].

        Both [tokens, active], valid until the next call, as `shared_weights` are.
        """
        self._graphs.run(layer, x)
        return self.ids[:len(x)], self._weights[:len(x)]
