"""How the window's slots are shared out: stream ring, pinned groups, cache of single groups."""

from collections.abc import Collection
from dataclasses import dataclass

from flash_llm_ros.engine.memory.core import bookkeeping_bytes
from flash_llm_ros.engine.plan import WindowSize
from flash_llm_ros.store.geometry import EXPERT_SECTIONS, Geometry

# A stream of these reaches the device's sequential rate while earlier chunks are computed on.
_CHUNK_BYTES = 512 * 1024
_SMALL_CHUNK_BYTES = 256 * 1024     # slower, but leaves a small window to its groups
_LEAST_CHUNKS = 6
_EMBEDDING_SLOTS = 32      # rows of the embedding are read group by group, whatever the block does


@dataclass(frozen=True)
class WindowPlan:
    """Slots of each use; `pins` maps the index of a section to its pinned leading groups."""

    slots: int
    chunk_groups: int
    chunks: int
    cache_slots: int
    pins: dict[int, int]

    def bytes(self, geometry: Geometry) -> int:
        """Of the slots and their tables."""
        return (self.slots * geometry.group_bytes
                + bookkeeping_bytes(geometry, self.cache_slots))


def chunk_groups(geometry: Geometry, chunk_bytes: int) -> int:
    """Groups of one streamed read; a read never crosses a section."""
    longest = max(section.groups for section in geometry.sections)
    return min(longest, max(1, chunk_bytes // geometry.group_bytes))


def least_slots(geometry: Geometry, grouped: Collection[str] = ()) -> int:
    """The smallest window that works at a useful speed; `grouped` as in `plan_window`."""
    return (_LEAST_CHUNKS * chunk_groups(geometry, _SMALL_CHUNK_BYTES)
            + _least_cache(geometry, grouped))


def most_slots(geometry: Geometry) -> int:
    """The largest window of use: every layer and the head stay in it."""
    layers = sum(section.all_groups for section in geometry.sections if section.layer >= 0)
    return (_LEAST_CHUNKS * chunk_groups(geometry, _CHUNK_BYTES) + _EMBEDDING_SLOTS + layers
            + geometry.sections[head_index(geometry)].groups)


def plan_window(geometry: Geometry, slots: int, grouped: Collection[str] = ()) -> WindowPlan:
    """Pin what is used for every token first; what is used for some goes to the cache.

    `grouped`: the names of layers' sections that are read group by group, because a token needs a
    part of them; all other ones of layers and the head are needed for every token, and an even
    share of each is pinned, so that computing on it hides a part of the next one's reads. `slots`
    lies between `least_slots` and `most_slots`, and each of them gets its use.
    """
    cache = _least_cache(geometry, grouped)
    always = _always_used(geometry, grouped)
    chunk = chunk_groups(geometry, _CHUNK_BYTES)
    if _LEAST_CHUNKS * chunk > (slots - cache) // 4:
        chunk = chunk_groups(geometry, _SMALL_CHUNK_BYTES)
    chunks = _chunks(geometry, slots - cache, sum(geometry.sections[i].groups for i in always),
                     chunk)
    left = slots - chunks * chunk - cache
    pins: dict[int, int] = {}
    left -= _pin_evenly(geometry, always, left, pins)
    return WindowPlan(slots, chunk, chunks, cache + left,
                      {index: count for index, count in pins.items() if count})


def whole_window(geometry: Geometry) -> WindowPlan:
    """All that a token computes with is pinned; of an embedding that is no head it reads a row."""
    pins = {index: geometry.sections[index].groups for index in _always_used(geometry, ())}
    slots = 1 + _EMBEDDING_SLOTS + sum(pins.values())
    return WindowPlan(slots, chunk_groups=1, chunks=1, cache_slots=_EMBEDDING_SLOTS, pins=pins)


def window_size(geometry: Geometry, grouped: Collection[str] = ()) -> WindowSize:
    """What the memory plan has to know of the window."""
    def bookkeeping(slots: int) -> int:
        return bookkeeping_bytes(geometry, plan_window(geometry, slots, grouped).cache_slots)

    def content(slots: int) -> str:
        held, of = experts_held(geometry, plan_window(geometry, slots, grouped))
        return f': {held} of {of} experts' if of else ''

    return WindowSize(geometry.group_bytes, least_slots(geometry, grouped), most_slots(geometry),
                      bookkeeping, content)


def groups_streamed(geometry: Geometry, plan: WindowPlan, grouped: Collection[str] = ()) -> int:
    """How many groups every token reads: of what it always needs, those that are not pinned."""
    always = sum(geometry.sections[index].groups for index in _always_used(geometry, grouped))
    return always - sum(plan.pins.values())


def single_group_slots(plan: WindowPlan) -> int:
    """Slots of the cache that are left for layers' groups."""
    return plan.cache_slots - _EMBEDDING_SLOTS


def experts_held(geometry: Geometry, plan: WindowPlan) -> tuple[int, int]:
    """How many experts of all layers fit into the window, and how many there are."""
    layers = geometry.all_layers(EXPERT_SECTIONS[0])
    if not layers:
        return 0, 0
    of = sum(section.copies for section in layers)
    groups = sum(section.copies * section.stride for section in layers)
    return min(of, single_group_slots(plan) * of // groups), of


def _chunks(geometry: Geometry, slots: int, always: int, chunk: int) -> int:
    """Chunks of the ring, of `chunk` groups: reading goes on while nothing of it is used.

    That is while attention and the pinned share of a layer are computed, in which about half of a
    layer could be read. What the ring takes is streamed more, so it stays a small part of that.
    """
    layer = max(sum(other.groups for other in geometry.sections if other.layer == section.layer)
                for section in geometry.sections if section.layer >= 0)
    streamed = always - (slots - _LEAST_CHUNKS * chunk)
    wanted = min(layer // 2, streamed // 16, slots // 4)
    return max(_LEAST_CHUNKS, wanted // chunk)


def head_index(geometry: Geometry) -> int:
    """The section of the output head: its own, or the embedding's when they are tied."""
    names = [section.name for section in geometry.sections]
    return names.index('head') if 'head' in names else names.index('embedding')


def _always_used(geometry: Geometry, grouped: Collection[str]) -> list[int]:
    """Indices of the sections that every token needs as a whole: layers' and the head."""
    head = head_index(geometry)
    return [index for index, section in enumerate(geometry.sections)
            if index == head or (section.layer >= 0 and section.name not in grouped)]


def _least_cache(geometry: Geometry, grouped: Collection[str]) -> int:
    """Beside the embedding's, one layer's groups, so that a layer is computed in one batch.

    Of experts those of two: one is read while the other is computed.
    """
    return _EMBEDDING_SLOTS + max((2 * section.stride or section.groups
                                   for section in geometry.sections
                                   if section.layer >= 0 and section.name in grouped), default=0)


def _pin_evenly(geometry: Geometry, indices: list[int], slots: int, pins: dict[int, int]) -> int:
    total = sum(geometry.sections[index].groups for index in indices)
    if not total:
        return 0
    slots = min(slots, total)
    for index in indices:
        pins[index] = slots * geometry.sections[index].groups // total
    rest = slots - sum(pins[index] for index in indices)
    for index in indices[:rest]:            # what rounding down has left, less than one each
        pins[index] += 1
    return slots
