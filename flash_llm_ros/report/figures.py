"""What a token must read under DRAM budgets, the least time for it, and what mode auto takes."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from flash_llm_ros.engine.config import EngineConfig
from flash_llm_ros.engine.memory.window_plan import (
    groups_streamed,
    least_slots,
    most_slots,
    plan_window,
)
from flash_llm_ros.engine.mode import ranked_modes
from flash_llm_ros.engine.model.feed_forward.gated import GatedFeedForward
from flash_llm_ros.engine.plan import MemoryPlan
from flash_llm_ros.store.device_profile import STREAM_REQUEST, DeviceProfile
from flash_llm_ros.store.geometry import Geometry
from flash_llm_ros.store.manifest import Manifest


@dataclass(frozen=True)
class BudgetFloor:
    """What a token of exact mode must read under a DRAM budget, and the least time for it."""

    budget: int
    window_bytes: int
    read_bytes: int
    milliseconds: float | None      # None: the device was not probed
    auto: str                       # the mode that auto takes there, and why


def budget_floors(plans: Mapping[str, MemoryPlan], manifest: Manifest,
                  profile: DeviceProfile | None, budgets: Sequence[int] = ()) -> list[BudgetFloor]:
    """Exact mode under budgets, by default six from the least to all of the model.

    `plans`: one of each mode that the store has: what is not the window is the same under every
    budget. Budgets below the least of exact mode are left out.
    """
    geometry, fixed = manifest.geometry, _fixed(plans['exact'])
    costs = profile and profile.costs(EngineConfig.reads_in_flight)
    least = fixed + least_slots(geometry) * geometry.group_bytes
    most = fixed + most_slots(geometry) * geometry.group_bytes
    floors = []
    for budget in budgets or np.linspace(least, most, 6).astype(int).tolist():
        if budget < least:
            continue
        slots = min((budget - fixed) // geometry.group_bytes, most_slots(geometry))
        read = groups_streamed(geometry, plan_window(geometry, slots)) * geometry.group_bytes
        seconds = profile and profile.floor_seconds(read, -(-read // STREAM_REQUEST))
        auto = ranked_modes('auto', manifest, {
            'exact': slots,
            'gated': _slots(plans.get('gated'), geometry, budget, GatedFeedForward.grouped)}, costs)
        floors.append(BudgetFloor(int(budget), slots * geometry.group_bytes, read,
                                  None if seconds is None else 1e3 * seconds, auto[0].reason))
    return floors


def _fixed(plan: MemoryPlan) -> int:
    return plan.planned - plan.window_bytes


def _slots(plan: MemoryPlan | None, geometry: Geometry, budget: int,
           grouped: Collection[str]) -> int:
    """Of the window in a mode; 0 where it does not fit, or the store does not have the mode."""
    slots = 0 if plan is None else (budget - _fixed(plan)) // geometry.group_bytes
    return min(slots, most_slots(geometry)) if slots >= least_slots(geometry, grouped) else 0
