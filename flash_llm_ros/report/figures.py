"""What a token must read under DRAM budgets, the least time for it, and what mode auto takes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from flash_llm_ros.engine.config import EngineConfig
from flash_llm_ros.engine.memory.read_estimate import estimated_reads
from flash_llm_ros.engine.memory.window_plan import least_slots, most_slots, plan_window
from flash_llm_ros.engine.parts import block_kinds, mode_choices
from flash_llm_ros.engine.plan import MemoryPlan
from flash_llm_ros.store.device_profile import STREAM_REQUEST, DeviceProfile
from flash_llm_ros.store.flash_store import FlashStore


@dataclass(frozen=True)
class BudgetFloor:
    """What a token of exact mode must read under a DRAM budget, and the least time for it."""

    budget: int
    window_bytes: int
    read_bytes: int
    milliseconds: float | None      # None: the device was not probed
    auto: str                       # the mode that auto takes there, and why


def budget_floors(plans: Mapping[str, MemoryPlan], store: FlashStore,
                  profile: DeviceProfile | None, budgets: Sequence[int] = ()) -> list[BudgetFloor]:
    """Exact mode under budgets, by default six from the least to all of the model.

    `plans`: one of each mode that the store has: what is not the window is the same under every
    budget. Budgets below the least of exact mode are left out.
    """
    geometry, fixed = store.manifest.geometry, _fixed(plans['exact'])
    grouped, experts = _grouped(store)['exact'], store.manifest.model.feed_forward.experts
    share = 1.0 if experts is None else experts.active / experts.count
    least, most = (fixed + slots * geometry.group_bytes
                   for slots in (least_slots(geometry, grouped), most_slots(geometry)))
    floors = []
    for budget in budgets or np.linspace(least, most, 6).astype(int).tolist():
        if budget < least:
            continue
        slots = min((budget - fixed) // geometry.group_bytes, most_slots(geometry))
        read = round(estimated_reads(geometry, plan_window(geometry, slots, grouped), None,
                                     grouped, share).bytes)
        seconds = profile and profile.floor_seconds(read, -(-read // STREAM_REQUEST))
        floors.append(BudgetFloor(int(budget), slots * geometry.group_bytes, read,
                                  None if seconds is None else 1e3 * seconds,
                                  _auto(plans, store, profile, int(budget))))
    return floors


def _fixed(plan: MemoryPlan) -> int:
    return plan.planned - plan.window_bytes


def _grouped(store: FlashStore) -> dict[str, tuple[str, ...]]:
    """What each mode of a store reads group by group."""
    return {kind.mode: kind.grouped for kind in block_kinds(store.manifest)}


def _auto(plans: Mapping[str, MemoryPlan], store: FlashStore, profile: DeviceProfile | None,
          budget: int) -> str:
    """As opening an engine does: the first choice that fits with what loading took."""
    def fits(mode: str) -> bool:
        window = least_slots(geometry, _grouped(store)[mode]) * geometry.group_bytes
        return budget >= _fixed(plans[mode]) + window

    geometry, costs = store.manifest.geometry, profile and profile.costs(
        EngineConfig.reads_in_flight)
    choices = [choice for choice, _ in mode_choices(EngineConfig(store.path, budget), store, costs)]
    return next((choice for choice in choices if fits(choice.mode)), choices[-1]).reason
