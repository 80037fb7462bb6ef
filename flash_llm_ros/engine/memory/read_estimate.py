"""How long a token's reads take the device, by the plan of reads that the core itself makes."""

from collections.abc import Collection
from typing import NamedTuple

import numpy as np

from flash_llm_ros.engine.memory.core import plan_reads
from flash_llm_ros.engine.memory.window_plan import WindowPlan, groups_streamed, single_group_slots
from flash_llm_ros.store.device_profile import ReadCosts
from flash_llm_ros.store.geometry import Geometry, Section

# Of a device that was not probed: 1 GB/s, and a scattered request costs as much as 16 KiB more.
_UNPROBED = ReadCosts(16384e-9, 1e-9, 1 << 20, 1e-9)
_NEIGHBOURS = 0.5       # groups that a request costs the core's planner there: it reads no gaps
# A layer waits for its reads: the queue fills and drains. One request alone takes about four times
# as long as one of many, which comes to as many more.
_DRAIN = 3


class ReadEstimate(NamedTuple):
    """What a token's reads come to; gaps that are read along count."""

    bytes: float
    seconds: float

    def plus(self, other: 'ReadEstimate') -> 'ReadEstimate':
        return ReadEstimate(self.bytes + other.bytes, self.seconds + other.seconds)

    def __str__(self) -> str:
        return f'{self.seconds * 1e3:.1f} ms ({self.bytes / 1e6:.1f} MB)'


def estimated_reads(geometry: Geometry, plan: WindowPlan, costs: ReadCosts | None,
                    grouped: Collection[str] = (), share: float = 1.0) -> ReadEstimate:
    """Of one token through a window that is shared out so.

    `costs`: None where the device was not probed; the core then reads only neighbours together.
    `share`: of the groups of layers' sections of these names, that a token needs. The window is
    taken to hold any of them equally likely: it holds those that are needed most, so this is
    rather too much.
    """
    streamed = groups_streamed(geometry, plan, grouped) * geometry.group_bytes
    read = ReadEstimate(streamed, streamed * (costs or _UNPROBED).stream_seconds)
    layers = [section for section in geometry.sections
              if section.layer >= 0 and section.name in grouped]
    if not layers:
        return read
    groups = sum(section.all_groups for section in layers)
    missing = share * (1 - min(1.0, single_group_slots(plan) / groups))
    if layers[0].stride:
        return read.plus(_experts(geometry, layers, missing, costs))
    one = _scattered(geometry, layers[0], missing, costs)
    return read.plus(ReadEstimate(len(layers) * one.bytes, len(layers) * one.seconds))


def _experts(geometry: Geometry, sections: list[Section], share: float,
             costs: ReadCosts | None) -> ReadEstimate:
    """Of this share of all experts; each is a run of groups, read in as few requests as pay."""
    paid = costs or _UNPROBED
    experts = share * sum(section.copies for section in sections) / 2
    size = sections[0].stride * geometry.group_bytes
    requests = -(-size // paid.largest_bytes)
    return ReadEstimate(experts * size,
                        experts * (requests * paid.request_seconds + size * paid.byte_seconds))


def _scattered(geometry: Geometry, section: Section, share: float,
               costs: ReadCosts | None) -> ReadEstimate:
    """Of this share of a section's groups, drawn at random, always the same."""
    wanted = round(share * section.groups)
    if not wanted:
        return ReadEstimate(0, 0)
    drawn = np.random.default_rng(0).choice(section.groups, wanted, replace=False)
    groups, paid = np.sort(drawn).tolist(), costs or _UNPROBED
    request = (_NEIGHBOURS if costs is None else
               costs.request_seconds / (costs.byte_seconds * geometry.group_bytes))
    spans = plan_reads(groups, request, max(1, paid.largest_bytes // geometry.group_bytes))
    read = geometry.group_bytes * sum(groups[end - 1] - groups[begin] + 1 for begin, end in spans)
    one = paid.request_seconds + read / len(spans) * paid.byte_seconds
    return ReadEstimate(read, one * (len(spans) + _DRAIN))
