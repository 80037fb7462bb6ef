"""Mixtures of experts: the model's own router chooses which blocks a token uses, exactly."""

import numpy as np
from numpy.typing import NDArray

from flash_llm_ros.engine.memory.window import Window
from flash_llm_ros.engine.model.expert_predictors import ExpertPredictors
from flash_llm_ros.engine.model.feed_forward.block import Array, FeedForwardBlock
from flash_llm_ros.engine.model.feed_forward.read_ahead import ReadAhead
from flash_llm_ros.engine.model.feed_forward.routers import Routers
from flash_llm_ros.store.flash_store import FlashStore
from flash_llm_ros.store.geometry import DENSE_SECTIONS, EXPERT_SECTIONS
from flash_llm_ros.store.manifest import ExpertForesight

_LEAST_RECALL = 0.7     # a wrong read costs as much as a right one saves, and its place


class ExpertFeedForward(FeedForwardBlock):
    """Experts are read to the cache; each that a pass needs once, for all of its tokens.

    What every token uses beside them, and layers without, are streamed as in dense models. Tokens
    that follow each other share few experts, so guessing some of them does not pay. The next
    layer's experts can be foreseen from this layer's input and read while it is computed: for a
    prompt, and for a token as long as timed tokens say it is faster.
    """

    mode = 'exact'
    grouped = EXPERT_SECTIONS
    one_by_one = True

    def __init__(self, store: FlashStore, chunk: int) -> None:
        """`chunk`: the most tokens of a pass."""
        self._store, self._spec, self._chunk = store, store.manifest.model, chunk
        self._block, self._experts = self._spec.feed_forward, self._spec.feed_forward.experts
        self.ranks = _useful_ranks(store.manifest.foresight)
        self.read_ahead = ReadAhead()
        self._ahead = False     # of the token that is computed
        self.routers = Routers(store, chunk)
        self.active_neurons = self.total_neurons = 0

    def load(self) -> None:
        self.routers.load()
        if self.ranks:
            self.predictors = ExpertPredictors(self._store, self._chunk)

    def attach(self, window: Window) -> None:
        self._window = window
        expert = self._store.manifest.geometry.all_layers(EXPERT_SECTIONS[0])[0].stride
        self._room = window.plan.cache_slots // expert      # experts
        most = max(self._block.always(layer) for layer in range(self._spec.layers))
        self._activations = np.zeros(self._chunk * most, np.float32)

    def begin(self, dense: bool, last: bool) -> None:
        self._window.stream(DENSE_SECTIONS, last)
        self._timed = not dense and self.ranks > 0
        self._ahead = self._timed and self.read_ahead.begin()

    def run(self, layer: int, x: Array, out: Array, dense: bool) -> NDArray[np.uint8] | None:
        """As the base says, with 1 for each expert that was used, uint8 [experts]."""
        if not self._block.routed(layer):
            self._run_always(layer, x, out)
            return None
        tokens, always = len(x), self._block.always(layer)
        core, (gate_up, down) = self._window.core, self._sections(layer)
        ids, weights = self.routers.choose(layer, x)
        used = np.zeros(self._experts.count, np.uint8)
        used[ids] = 1
        foreseen = self._foreseen(layer, x)
        if (foreseen.size or always) and np.count_nonzero(used) <= self._room:
            core.prefetch_experts(gate_up, down, np.flatnonzero(used), True)    # these come first
            if foreseen.size:
                core.prefetch_experts(*self._sections(layer + 1), foreseen)
        if always:
            self._run_always(layer, x, out)
        core.experts(gate_up, down, x, ids, weights, out, self._block.activation)
        if self._timed and layer == self._spec.layers - 1:
            self.read_ahead.end()
        self.active_neurons += ids.size * self._block.size
        self.total_neurons += tokens * self._experts.count * self._block.size
        return used

    def _foreseen(self, layer: int, x: Array) -> NDArray[np.int64]:
        """Experts of the next layer that are to be read while this one is computed.

        A prompt's tokens agree: what two of them are foreseen to use is hardly ever wrong.
        """
        if not self.ranks or layer not in self._spec.foreseeing_layers or (
                len(x) == 1 and not self._ahead):
            return np.zeros(0, np.int64)
        likely = self.predictors.likely(layer, x)[:, :self.ranks]
        uses = np.bincount(likely.ravel(), minlength=self._experts.count)
        return np.flatnonzero(uses >= min(len(x), 2))

    def _run_always(self, layer: int, x: Array, out: Array) -> None:
        """Add the block of a layer that every token uses."""
        core, neurons = self._window.core, self._block.always(layer)
        gate_up, down = (self._window.section(name, layer) for name in DENSE_SECTIONS)
        h = self._activations[:len(x) * neurons].reshape(len(x), neurons)
        if self._block.routed(layer) and self._experts.shared_weighed:
            core.gate_up(gate_up, x, h, self._block.activation)
            h *= self.routers.shared_weights[:len(x)]
            core.rows_dot(down, h, out, add=True)
        else:
            core.gate_up_down(gate_up, down, x, h, out, self._block.activation)
        self.active_neurons += len(x) * neurons
        self.total_neurons += len(x) * neurons

    def _sections(self, layer: int) -> tuple[int, int]:
        gate_up, down = (self._window.section(name, layer) for name in EXPERT_SECTIONS)
        return gate_up, down


def _useful_ranks(foresight: ExpertForesight | None) -> int:
    """How many of the likeliest experts are worth reading: those that are right often enough."""
    recall = [] if foresight is None else foresight.recall
    return next((rank for rank, share in enumerate(recall) if share < _LEAST_RECALL), len(recall))
