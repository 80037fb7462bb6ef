"""Mixtures of experts: the model's own router chooses which blocks a token uses, exactly."""

import numpy as np

from flash_llm_ros.engine.memory.window import Window
from flash_llm_ros.engine.model.feed_forward.block import Array, FeedForwardBlock
from flash_llm_ros.store.flash_store import FlashStore
from flash_llm_ros.store.geometry import EXPERT_SECTIONS
from flash_llm_ros.store.router_graph import EXPERT_IDS, EXPERT_WEIGHTS


class ExpertFeedForward(FeedForwardBlock):
    """Experts are read to the cache; each that a pass needs once, for all of its tokens.

    The layers' graphs have the routers. Tokens that follow each other share few experts, so
    guessing some of them does not pay.
    """

    mode = 'exact'
    grouped = EXPERT_SECTIONS
    one_by_one = True

    def __init__(self, store: FlashStore, chunk: int) -> None:
        """`chunk`: the most tokens of a pass."""
        spec = store.manifest.model.feed_forward
        self._activation, self._size = spec.activation, spec.size
        self._count, active = spec.experts.count, spec.experts.active
        self._ids = np.zeros((chunk, active), np.int64)
        self._weights = np.zeros((chunk, active), np.float32)
        self.routing = {EXPERT_IDS: self._ids, EXPERT_WEIGHTS: self._weights}
        self.active_neurons = self.total_neurons = 0

    def attach(self, window: Window) -> None:
        self._window = window

    def begin(self, dense: bool, last: bool) -> None:
        self._window.stream((), last)

    def run(self, layer: int, x: Array, out: Array, dense: bool) -> None:
        tokens = len(x)
        gate_up, down = (self._window.section(name, layer) for name in EXPERT_SECTIONS)
        self._window.core.experts(gate_up, down, x, self._ids[:tokens], self._weights[:tokens],
                                  out, self._activation)
        self.active_neurons += self._ids[:tokens].size * self._size
        self.total_neurons += tokens * self._count * self._size
