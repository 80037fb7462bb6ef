"""The neuron file behind its window: sections by name, shared out as the window plan says."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flash_llm_ros.engine.config import EngineConfig
from flash_llm_ros.engine.memory.core import load_core_class
from flash_llm_ros.engine.memory.window_plan import WindowPlan, groups_streamed, head_index
from flash_llm_ros.store.device_profile import ReadCosts, usable_profile
from flash_llm_ros.store.flash_store import FlashStore
from flash_llm_ros.store.geometry import ATTENTION_SECTIONS

# Tokens after which a use counts half for who yields; `python -m bench.window.hit_rates` compares.
NEURONS_HALF_LIFE, EXPERTS_HALF_LIFE = 4, 16


class Window:
    """Owns the core; everything below is computed on groups in the window's slots."""

    def __init__(self, store: FlashStore, config: EngineConfig, plan: WindowPlan,
                 costs: ReadCosts | None = None) -> None:
        """Allocate, and read what is pinned; `costs`: of scattered reads on this device."""
        geometry = store.manifest.geometry
        self._in_flight = config.reads_in_flight
        self._streamed = groups_streamed(geometry, plan)
        self.plan, self.layers = plan, store.manifest.model.layers
        self.core: Any = load_core_class()(
            str(store.neurons), geometry.group_bytes, geometry.groups, geometry.dim,
            plan.slots, identity=store.manifest.identity, threads=config.threads,
            reader=config.reader, reads_in_flight=config.reads_in_flight,
            direct_io=config.direct_io, lock_memory=config.lock_memory)
        try:
            ids = [self.core.add_section(section.first_group, section.bundles,
                                         section.bundles_per_group, section.rows,
                                         section.codec.name, section.codec.dim,
                                         section.copies, section.stride, section.codec.biased)
                   for section in geometry.sections]
            self._ids = {(section.name, section.layer): ids[index]
                         for index, section in enumerate(geometry.sections)}
            self._attention = ATTENTION_SECTIONS if store.manifest.model.core_attention else ()
            self.head = ids[head_index(geometry)]
            self.embedding = self._ids['embedding', -1]
            self.core.set_ring(plan.chunk_groups, plan.chunks)
            experts = store.manifest.model.feed_forward.experts
            self.core.set_cache(plan.cache_slots, NEURONS_HALF_LIFE if experts is None else
                                EXPERTS_HALF_LIFE)
            if costs is not None:
                self.core.set_read_costs(costs.request_seconds, costs.byte_seconds,
                                         costs.largest_bytes)
            for index, groups in plan.pins.items():
                self.core.pin(ids[index], groups)
                store.progress()
        except BaseException:
            self.core.close()
            raise
        self._order: list[int] = []

    @property
    def streams(self) -> bool:
        """Whether a token that uses every neuron waits for flash."""
        return self._streamed > 0

    @property
    def reader(self) -> str:
        """How flash is read, for people."""
        return f'{self.core.reader}, up to {self._in_flight} reads at once'

    def section(self, name: str, layer: int) -> int:
        return self._ids[name, layer]

    def stream(self, names: tuple[str, ...], head: bool) -> None:
        """Read ahead, over and over: attention's and these sections of layers, then the head."""
        names = (*self._attention, *names)
        order = [self._ids[name, layer] for layer in range(self.layers) for name in names
                 if (name, layer) in self._ids]
        order += [self.head] if head else []
        if order != self._order:
            self._order = order
            self.core.set_stream_order(order)

    def embed(self, tokens: NDArray[np.int64], out: NDArray[np.float32]) -> None:
        """Rows of the embedding, float32 [tokens, d]."""
        self.core.read_rows(self.embedding, tokens, out)

    def logits(self, normed: NDArray[np.float32], out: NDArray[np.float32]) -> None:
        """The output head, float32 [n, d] -> [n, vocabulary]."""
        self.core.rows_dot(self.head, normed, out)

    def close(self) -> None:
        self.core.close()


def read_costs(store: FlashStore, config: EngineConfig,
               log: Callable[[str], None]) -> ReadCosts | None:
    """What scattered reads cost on this device, if it has been probed."""
    profile, line = usable_profile(store.path)
    log(line)
    return None if profile is None else profile.costs(config.reads_in_flight)
