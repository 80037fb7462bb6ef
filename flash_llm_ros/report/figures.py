"""What a token must read under DRAM budgets, and the least time for it."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from flash_llm_ros.engine.memory.window_plan import (
    groups_streamed,
    least_slots,
    most_slots,
    plan_window,
)
from flash_llm_ros.engine.plan import MemoryPlan
from flash_llm_ros.store.device_profile import STREAM_REQUEST, DeviceProfile
from flash_llm_ros.store.geometry import Geometry


@dataclass(frozen=True)
class BudgetFloor:
    """What a token of exact mode must read under a DRAM budget, and the least time for it."""

    budget: int
    window_bytes: int
    read_bytes: int
    milliseconds: float | None      # None: the device was not probed


def budget_floors(plan: MemoryPlan, geometry: Geometry, profile: DeviceProfile | None,
                  budgets: Sequence[int] = ()) -> list[BudgetFloor]:
    """Exact mode under budgets, by default six from the least to all of the model.

    `plan` is one of exact mode: what is not its window is the same under every budget. Budgets
    below the least are left out.
    """
    fixed = plan.planned - plan.window_bytes
    least = fixed + least_slots(geometry) * geometry.group_bytes
    most = fixed + most_slots(geometry) * geometry.group_bytes
    floors = []
    for budget in budgets or np.linspace(least, most, 6).astype(int).tolist():
        if budget < least:
            continue
        slots = min((budget - fixed) // geometry.group_bytes, most_slots(geometry))
        read = groups_streamed(geometry, plan_window(geometry, slots)) * geometry.group_bytes
        seconds = profile and profile.floor_seconds(read, -(-read // STREAM_REQUEST))
        floors.append(BudgetFloor(int(budget), slots * geometry.group_bytes, read,
                                  None if seconds is None else 1e3 * seconds))
    return floors
