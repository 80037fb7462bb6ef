"""The feed-forward block: dense, or only the active set, in either layout."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from flash_llm_ros.engine.memory.window import Window
from flash_llm_ros.engine.model.predictors import PredictorStack
from flash_llm_ros.engine.tail_correction import TailCorrection
from flash_llm_ros.engine.token_clock import TokenClock
from flash_llm_ros.model_spec import ModelSpec
from flash_llm_ros.store.flash_store import RESIDENT, FlashStore
from flash_llm_ros.store.resident_layout import up_bias
from flash_llm_ros.store.tensor_file import TensorFile

Array = NDArray[np.float32]


class FeedForward(Protocol):
    """Adds FFN(x) to `out`; both float32 [tokens, d]."""

    active_neurons: int     # used so far, and out of how many
    total_neurons: int

    def begin(self, dense: bool, last: bool) -> None:
        """Announce a pass over all layers; `last`: the output head follows it."""

    def run(self, layer: int, x: Array, out: Array, dense: bool) -> NDArray[np.uint8] | None:
        """One layer; `dense` uses every neuron, in whatever mode the engine is.

        Returns 1 for each neuron that was used, uint8 [ffn], valid until the next call; None: all.
        """


class DenseFeedForward:
    """Every neuron of every layer: exact mode, and the prefill of the other modes."""

    def __init__(self, window: Window, spec: ModelSpec, layout: str, chunk: int,
                 biases: list[Array | None]) -> None:
        """`biases`: of a layer's up rows, float32 [ffn], or None."""
        self._window, self._spec, self._layout = window, spec, layout
        self.biases = biases
        self._names = ('gate_up', 'down') if layout == 'split' else ('bundle',)
        self.activations = np.zeros((chunk if layout == 'split' else 1, spec.feed_forward.size),
                                    np.float32)
        self.active_neurons = self.total_neurons = 0

    def begin(self, dense: bool, last: bool) -> None:
        self._window.stream(self._names, last)

    def run(self, layer: int, x: Array, out: Array, dense: bool) -> None:
        core, activation = self._window.core, self._spec.feed_forward.activation
        if self._layout == 'split':
            h = self.activations[:len(x)]
            core.gate_up(self._window.section('gate_up', layer), x, h, activation)
            core.add_rows(self._window.section('down', layer), h, out)
        else:
            core.bundled(self._window.section('bundle', layer), x, out, activation,
                         self.biases[layer], self._spec.feed_forward.relu_threshold)
        self.count(len(x) * self._spec.feed_forward.size, len(x))

    def count(self, active: int, tokens: int = 1) -> None:
        self.active_neurons += active
        self.total_neurons += tokens * self._spec.feed_forward.size


class SparseFeedForward(ABC):
    """What both layouts share: a prompt is read dense, a token uses its active set."""

    streamed: tuple[str, ...]       # sections that every token needs as a whole

    def __init__(self, dense: DenseFeedForward, window: Window, activation: str,
                 clock: TokenClock | None, together: int = 1) -> None:
        """`together`: neighbours that are used as soon as one of them is; those of a group."""
        self._dense, self._window, self._activation = dense, window, activation
        self._clock, self._together = clock, together

    @property
    def active_neurons(self) -> int:
        return self._dense.active_neurons

    @property
    def total_neurons(self) -> int:
        return self._dense.total_neurons

    def begin(self, dense: bool, last: bool) -> None:
        if dense:
            self._dense.begin(dense, last)
        else:
            self._window.stream(self.streamed, last)

    def run(self, layer: int, x: Array, out: Array, dense: bool) -> NDArray[np.uint8] | None:
        if dense:
            return self._dense.run(layer, x, out, dense)
        active = self._run_active(layer, x, out)
        self._dense.count(int(np.count_nonzero(active)))
        return active

    def _leave_out_late(self, layer: int, section: int, active: NDArray[np.uint8],
                        importance: Callable[[], Array]) -> None:
        """Where tokens have a deadline, 0 in `active` for what cannot be read in time."""
        if self._clock is not None:
            weights = importance()
            self._clock.layer(layer, lambda deadline: self._window.core.fetch(
                section, active, weights, deadline))

    def _with_neighbours(self, active: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """1 for each neuron that is read with an active one."""
        if self._together == 1:
            return active
        groups = np.maximum.reduceat(active, np.arange(0, len(active), self._together))
        return np.repeat(groups, self._together)[:len(active)]

    @abstractmethod
    def _run_active(self, layer: int, x: Array, out: Array) -> NDArray[np.uint8]:
        """Add what the active set gives for one token; returns 1 for each neuron in it."""


class SplitFeedForward(SparseFeedForward):
    """Gated-SiLU models: gate and up are exact, a down column is used if abs(h) is above a limit.

    A predictor only prefetches; what it got wrong costs time, never text. Without one all down
    columns are read in the stream, and the others are passed over: the text is the same.
    """

    def __init__(self, dense: DenseFeedForward, window: Window,
                 predictors: PredictorStack | None, activation: str,
                 limits: list[Array], down_norms: list[Array],
                 clock: TokenClock | None, together: int = 1,
                 corrections: Sequence[TailCorrection] | None = None) -> None:
        """`corrections`: what a layer adds in the place of all that limits leave out."""
        super().__init__(dense, window, activation, clock, together)
        self._predictors, self._limits, self._down_norms = predictors, limits, down_norms
        self._corrections = corrections
        self.streamed = ('gate_up', 'down') if predictors is None else ('gate_up',)

    def _run_active(self, layer: int, x: Array, out: Array) -> NDArray[np.uint8]:
        core, down = self._window.core, self._window.section('down', layer)
        if self._predictors is not None:
            core.prefetch(down, self._predictors.wanted(layer, x[0]))
        h = self._dense.activations[:1]
        core.gate_up(self._window.section('gate_up', layer), x, h, self._activation)
        active = (np.abs(h[0]) > self._limits[layer]).view(np.uint8)
        self._leave_out_late(layer, down, active,
                             lambda: np.abs(h[0]) * self._down_norms[layer])
        active = self._with_neighbours(active)
        core.add_rows_sparse(down, h[0], active, out[0], self._predictors is None)
        if self._corrections is not None:
            self._corrections[layer].add(x, out)
        return active


class BundledFeedForward(SparseFeedForward):
    """ReLU models: the predictor decides which bundles are read and used (the paper).

    With `read_ahead` the next layer is predicted from this one's input, too, and what it would
    need is read while this one is computed. A wrong guess costs time, never text: the decision
    is made from the layer's own input.
    """

    streamed = ()

    def __init__(self, dense: DenseFeedForward, window: Window, predictors: PredictorStack,
                 spec: ModelSpec, clock: TokenClock | None, together: int = 1,
                 read_ahead: bool = False) -> None:
        super().__init__(dense, window, spec.feed_forward.activation, clock, together)
        self._predictors, self._threshold = predictors, spec.feed_forward.relu_threshold
        self._last, self.read_ahead = spec.layers - 1, read_ahead

    def _run_active(self, layer: int, x: Array, out: Array) -> NDArray[np.uint8]:
        active = self._predictors.wanted(layer, x[0])
        bundle, scores = self._window.section('bundle', layer), self._predictors.scores
        self._leave_out_late(layer, bundle, active, lambda: scores - scores.min())
        active = self._with_neighbours(active)
        if self.read_ahead and layer < self._last:
            active = active.copy()      # the predictors have one array
            self._window.core.prefetch(bundle, active, True)        # these come first
            self._window.core.prefetch(self._window.section('bundle', layer + 1),
                                       self._predictors.wanted(layer + 1, x[0]))
        self._window.core.bundled_sparse(bundle, x[0], active, out[0], self._activation, None,
                                         self._dense.biases[layer], self._threshold)
        return active


def up_biases(store: FlashStore) -> list[Array | None]:
    """What is added to what a layer's up rows give, float32 [ffn]; None where nothing is."""
    spec = store.manifest.model
    if not spec.feed_forward.bias:
        return [None] * spec.layers
    with TensorFile(store.path / RESIDENT) as tensors:
        biases = [tensors.read(up_bias(layer)) for layer in range(spec.layers)]
        tensors.drop_page_cache()
    return biases
