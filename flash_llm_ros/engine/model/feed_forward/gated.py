"""Blocks that are sparse by nature (ReLU kinds): a predictor decides what is read and used."""

import numpy as np
from numpy.typing import NDArray

from flash_llm_ros.engine.memory.window import Window
from flash_llm_ros.engine.model.feed_forward.block import Array, FeedForwardBlock
from flash_llm_ros.engine.model.feed_forward.dense import DenseFeedForward
from flash_llm_ros.engine.model.feed_forward.read_ahead import ReadAhead
from flash_llm_ros.engine.model.predictors import PredictorStack
from flash_llm_ros.engine.plan import PlanRow
from flash_llm_ros.store.flash_store import FlashStore


class GatedFeedForward(FeedForwardBlock):
    """A prompt is read dense, a generated token uses its predicted neurons (the paper).

    The next layer can be predicted from this one's input, too, and what it would need read while
    this one is computed. A wrong guess costs time, never text: the decision is made from the
    layer's own input.
    """

    mode = 'gated'
    grouped = ('bundle',)
    one_by_one = True       # each has neurons of its own

    def __init__(self, store: FlashStore, chunk: int) -> None:
        """`chunk`: the most tokens of a prompt at once."""
        self._store, self._spec = store, store.manifest.model
        self._dense = DenseFeedForward(store, chunk)
        self.read_ahead = ReadAhead()
        self._ahead = False     # of the token that is computed

    @property
    def active_neurons(self) -> int:
        return self._dense.active_neurons

    @property
    def total_neurons(self) -> int:
        return self._dense.total_neurons

    def estimate(self) -> list[PlanRow]:
        weights = self._store.manifest.files[self._store.predictor_weights]['bytes']
        return [*self._dense.estimate(), PlanRow('predictors', weights)]

    def load(self) -> None:
        self._dense.load()
        self.predictors = PredictorStack(self._store)

    def attach(self, window: Window) -> None:
        self._window = window
        self._dense.attach(window)

    def begin(self, dense: bool, last: bool) -> None:
        if dense:
            self._dense.begin(dense, last)
        else:
            self._window.stream((), last)
            self._ahead = self.read_ahead.begin()

    def run(self, layer: int, x: Array, out: Array, dense: bool) -> NDArray[np.uint8] | None:
        if dense:
            return self._dense.run(layer, x, out, dense)
        core, bundle = self._window.core, self._window.section('bundle', layer)
        active = self.predictors.wanted(layer, x[0])
        last = layer == self._spec.layers - 1
        if self._ahead and not last:
            active = active.copy()      # the predictors have one array
            core.prefetch(bundle, active, True)         # these come first
            core.prefetch(self._window.section('bundle', layer + 1),
                          self.predictors.wanted(layer + 1, x[0]))
        core.bundled_sparse(bundle, x[0], active, out[0], self._spec.feed_forward.activation,
                            bias=self._dense.biases[layer],
                            threshold=self._spec.feed_forward.relu_threshold)
        self._dense.count(int(np.count_nonzero(active)))
        if last:
            self.read_ahead.end()
        return active
