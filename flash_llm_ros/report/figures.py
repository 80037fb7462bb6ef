"""The figures of a report: from the manifest, a trace of neurons and the device profile."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from flash_llm_ros.engine.memory.window_plan import head_index, least_slots, most_slots, plan_window
from flash_llm_ros.engine.neuron_trace import NeuronTrace
from flash_llm_ros.engine.numpy_policies import DEFAULT_POLICY
from flash_llm_ros.engine.plan import MemoryPlan
from flash_llm_ros.store.device_profile import DeviceProfile
from flash_llm_ros.store.geometry import Geometry

WINDOWS = tuple(share / 10 for share in range(1, 11))
_STREAM_READ = 128 * 1024       # bytes of a request of the stream ring
_FRIENDS_NEURONS = 4096         # of a layer, at most: the table of pairs is a square

Array = NDArray[np.float64]


@dataclass(frozen=True)
class LayerActivity:
    """One layer of a trace: how often each neuron is used, and which is used with it most."""

    layer: int
    frequencies: Array          # share of the tokens, descending
    gini: float                 # 0: all neurons alike, 1: a single one
    friends: NDArray[np.int64]  # how many neurons' closest friend each is, descending
    friend_rank: float          # mean place of the closest friends by frequency, 0 to 1 (0: hot)


@dataclass(frozen=True)
class BudgetFloor:
    """What a token of exact mode must read under a DRAM budget, and the least time for it."""

    budget: int
    window_bytes: int
    read_bytes: int
    milliseconds: float | None      # None: the device was not probed


def layer_activities(trace: NeuronTrace) -> list[LayerActivity]:
    """One a section that the trace has uses of, in the order of the layers."""
    used: dict[int, list[NDArray[np.uint8]]] = {}
    for event in trace:
        if not event.predicted:
            used.setdefault(event.section, []).append(event.neurons)
    return [_activity(layer, np.stack(used[section]))
            for layer, section in enumerate(sorted(used))]


def _activity(layer: int, used: NDArray[np.uint8]) -> LayerActivity:
    """`used` is uint8 [tokens, neurons]."""
    frequency = used.mean(axis=0)
    order = np.argsort(-frequency, kind='stable')
    some = order[np.linspace(0, len(order) - 1, min(len(order), _FRIENDS_NEURONS)).astype(int)]
    together = used[:, some].astype(np.float32)
    pairs = together.T @ together
    np.fill_diagonal(pairs, -1)
    closest = pairs.argmax(axis=1)      # `some` runs from hot to cold: of equals the hotter
    ever = used[:, some].any(axis=0)
    counts = np.bincount(closest[ever], minlength=len(some))
    return LayerActivity(layer, frequency[order], gini(frequency), np.sort(counts)[::-1],
                         float(closest[ever].mean() / max(len(some) - 1, 1)) if ever.any() else 0)


def gini(values: Array) -> float:
    """Gini coefficient of values that are not negative."""
    ordered = np.sort(values)
    total = ordered.sum()
    if total == 0:
        return 0.0
    ranks = np.arange(1, len(ordered) + 1)
    return float(2 * (ranks * ordered).sum() / (len(ordered) * total)
                 - (len(ordered) + 1) / len(ordered))


def hit_rates(trace: NeuronTrace) -> dict[str, list[float]]:
    """Share of the needed groups found in windows of WINDOWS, by the native core's bookkeeping.

    For the default policy, and 'belady', the bound. ImportError without the compiled core.
    """
    from flash_llm_ros import _native

    events = _, _, ends, groups = trace.groups(predictions=False)
    total = sum(-(-int(trace.bundles[s]) // int(trace.bundles_per_group[s]))
                for s in trace.used_sections)
    largest = int(np.diff(ends, prepend=0).max())
    slots = [max(round(share * total), largest) for share in WINDOWS]
    count = max(len(groups), 1)
    return {
        DEFAULT_POLICY: [_native.replay(DEFAULT_POLICY, trace.file_groups, many, *events)['hits']
                         / count for many in slots],
        'belady': [_native.most_hits(trace.file_groups, many, *events) / count for many in slots]}


def streamed_bytes(geometry: Geometry, slots: int) -> int:
    """What exact mode reads for a token: every group of the layers and the head not pinned."""
    pins = plan_window(geometry, 'exact', slots).pins
    head = head_index(geometry)
    return sum((section.groups - pins.get(index, 0)) * geometry.group_bytes
               for index, section in enumerate(geometry.sections)
               if section.layer >= 0 or index == head)


def budget_floors(plan: MemoryPlan, geometry: Geometry, profile: DeviceProfile | None,
                  budgets: Sequence[int] = ()) -> list[BudgetFloor]:
    """Exact mode under budgets, by default six from the least to all of the model.

    `plan` is one of exact mode: what is not its window is the same under every budget. Budgets
    below the least are left out.
    """
    fixed = plan.planned - plan.window_bytes
    least = fixed + least_slots(geometry, 'exact') * geometry.group_bytes
    most = fixed + most_slots(geometry) * geometry.group_bytes
    floors = []
    for budget in budgets or np.linspace(least, most, 6).astype(int).tolist():
        if budget < least:
            continue
        slots = min((budget - fixed) // geometry.group_bytes, most_slots(geometry))
        read = streamed_bytes(geometry, slots)
        seconds = profile and profile.floor_seconds(read, -(-read // _STREAM_READ))
        floors.append(BudgetFloor(int(budget), slots * geometry.group_bytes, read,
                                  None if seconds is None else 1e3 * seconds))
    return floors
