"""How large groups should be for a device: so that a layer's active set is read quickly."""

from collections.abc import Iterable, Sequence

from flash_llm_ros.store.device_profile import ReadCosts
from flash_llm_ros.store.geometry import (
    CHECKSUM_BYTES,
    MIN_GROUP_BYTES,
    Geometry,
    SectionSpec,
    plan_geometry,
)

# What a group takes of a core besides the device: its slot, its checksum, its share of a request.
GROUP_SECONDS = 0.5e-6
SCATTERED = ('down', 'bundle')      # sections of which sparse mode reads a part
_CANDIDATES = tuple(MIN_GROUP_BYTES << step for step in range(6))
# Longer groups must save more than this: they leave the cache less of what is really used, which
# is not counted here.
_WORTH_IT = 1.1


def active_set_seconds(bundles: int, bundle_bytes: int, group_bytes: int, share: float,
                       costs: ReadCosts) -> float:
    """Expected time to read the groups of a section that hold an active bundle.

    Each of `bundles` is active with probability `share`, independently; nothing is cached. Gaps
    between groups are read where that costs less than another request, as the engine does. That
    requests have a longest length costs the same whatever the groups are, and is left out.
    """
    per_group = (group_bytes - CHECKSUM_BYTES) // bundle_bytes
    groups = -(-bundles // per_group)
    idle = (1 - share) ** per_group         # probability that a group is not needed
    if idle == 1:
        return 0.0
    transfer = group_bytes * costs.byte_seconds
    worth = costs.request_seconds / transfer    # groups that cost as much as a request
    whole = int(worth)
    # The expectation of min(gap, worth): the sum of the probabilities of a gap of at least 1, 2...
    gap = idle * (1 - idle ** whole) / (1 - idle) + (worth - whole) * idle ** (whole + 1)
    needed = groups * (1 - idle)
    runs = 1 - idle ** groups               # the first request, if there is any
    return (needed * (GROUP_SECONDS + transfer) + runs * costs.request_seconds
            + (needed - runs) * gap * transfer)


def layer_seconds(geometry: Geometry, share: float, costs: ReadCosts) -> float:
    """`active_set_seconds` of the scattered sections of the first layer."""
    return sum(active_set_seconds(section.bundles, section.bundle_bytes, geometry.group_bytes,
                                  share, costs)
               for section in geometry.sections
               if section.layer == 0 and section.name in SCATTERED)


def best_min_group_bytes(dim: int, codecs: str | Sequence[str],
                         section_specs: Iterable[SectionSpec], block: int, share: float,
                         costs: ReadCosts) -> int:
    """`min_group_bytes` for plan_geometry: from 4 KiB, doubled as long as that pays.

    The smallest of 4, 8, ... 128 KiB with which a layer's active set is read in at most 1.1 times
    the least time.
    """
    specs = list(section_specs)
    seconds = {least: layer_seconds(plan_geometry(dim, codecs, specs, block, least), share, costs)
               for least in _CANDIDATES}
    return next(least for least in _CANDIDATES
                if seconds[least] <= _WORTH_IT * min(seconds.values()))
