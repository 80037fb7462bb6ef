"""How the window's slots are shared out: stream ring, pinned groups, cache of single groups."""

from dataclasses import dataclass

from flash_llm_ros.store.geometry import Geometry, Section

# A stream of these reaches the device's sequential rate while earlier chunks are computed on.
_CHUNK_BYTES = 512 * 1024
_SMALL_CHUNK_BYTES = 256 * 1024     # slower, but leaves a small window to its groups
_LEAST_CHUNKS = 6
_EMBEDDING_SLOTS = 32      # rows of the embedding are read group by group, in every mode
_HEAD_SLOTS = 512           # for rows of a shortlisted head: as many reads at once are plenty


@dataclass(frozen=True)
class WindowPlan:
    """Slots of each use; `pins` maps the index of a section to its pinned leading groups."""

    slots: int
    chunk_groups: int
    chunks: int
    cache_slots: int
    pins: dict[int, int]


def chunk_groups(geometry: Geometry, chunk_bytes: int) -> int:
    """Groups of one streamed read; a read never crosses a section."""
    longest = max(section.groups for section in geometry.sections)
    return min(longest, max(1, chunk_bytes // geometry.group_bytes))


def least_slots(geometry: Geometry, mode: str) -> int:
    """The smallest window that works at a useful speed."""
    return (_LEAST_CHUNKS * chunk_groups(geometry, _SMALL_CHUNK_BYTES)
            + _least_cache(geometry, mode))


def most_slots(geometry: Geometry) -> int:
    """The largest window of use: every layer and the head stay in it."""
    layers = sum(section.groups for section in geometry.sections if section.layer >= 0)
    return (_LEAST_CHUNKS * chunk_groups(geometry, _CHUNK_BYTES) + _EMBEDDING_SLOTS + layers
            + geometry.sections[head_index(geometry)].groups)


def plan_window(geometry: Geometry, mode: str, slots: int) -> WindowPlan:
    """Pin what is used for every token first; what is used for some goes to the cache.

    `slots` lies between `least_slots` and `most_slots`, and each of them gets its use. An even
    share of every section that is needed for every token is pinned, so that computing on it hides
    a part of the next one's reads. Exact mode needs all of them, sparse mode gate and up rows and
    the head; it leaves the rest to the cache. Mode aggressive needs all but the head, rows of which
    are read group by group.
    """
    cache = _least_cache(geometry, mode)
    always = [i for i, section in enumerate(geometry.sections)
              if _always_used(section, mode)
              or (i == head_index(geometry) and mode != 'aggressive')]
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


def _always_used(section: Section, mode: str) -> bool:
    return section.layer >= 0 and (mode != 'sparse' or section.name == 'gate_up')


def _least_cache(geometry: Geometry, mode: str) -> int:
    """In sparse mode one layer's scattered groups, so that a layer is computed in one batch."""
    if mode == 'exact':
        return _EMBEDDING_SLOTS
    if mode == 'aggressive':
        head = geometry.sections[head_index(geometry)].groups
        return _EMBEDDING_SLOTS + min(_HEAD_SLOTS, head)
    return _EMBEDDING_SLOTS + max(section.groups for section in geometry.sections
                                  if section.layer >= 0 and section.name != 'gate_up')


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
