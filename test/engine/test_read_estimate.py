"""What a token's reads are estimated at, beside what can be told by hand."""

import pytest

from flash_llm_ros.engine.memory.read_estimate import ReadEstimate, estimated_reads
from flash_llm_ros.engine.memory.window_plan import least_slots, plan_window
from flash_llm_ros.store.device_profile import ReadCosts
from flash_llm_ros.store.geometry import Geometry, model_sections, plan_geometry

LAYERS, LAYER, HEAD = 4, 1024, 256      # groups of a layer and of the head
GROUPED = ('bundle',)
CACHED = LAYER      # by the least window of mode gated
MS = 1e-3


@pytest.fixture(scope='module')
def geometry() -> Geometry:
    found = plan_geometry(64, 'fp16', model_sections('bundled', 64, LAYERS, 10 * LAYER, 31 * HEAD,
                                                     True), max_waste=0.1)
    assert {section.groups for section in found.sections} == {LAYER, HEAD}
    return found


def in_units(geometry: Geometry, request: float, largest: int) -> ReadCosts:
    """A group costs a request 1 ms, and the request itself so many; streamed, it costs 0.5 ms."""
    byte = MS / geometry.group_bytes
    return ReadCosts(request * MS, byte, largest * geometry.group_bytes, 0.5 * byte)


def gated(geometry: Geometry, share: float, costs: ReadCosts | None,
          slots: int | None = None) -> ReadEstimate:
    plan = plan_window(geometry, slots or least_slots(geometry, GROUPED), GROUPED)
    return estimated_reads(geometry, plan, costs, GROUPED, share)


@pytest.mark.parametrize('more', [0, 1000])
def test_what_is_streamed(geometry: Geometry, more: int) -> None:
    plan = plan_window(geometry, least_slots(geometry) + more)
    read = LAYERS * LAYER + HEAD - sum(plan.pins.values())
    found = estimated_reads(geometry, plan, in_units(geometry, 3, 100))
    assert found.bytes == read * geometry.group_bytes
    assert found.seconds == pytest.approx(0.5 * MS * read)


def test_every_group_of_a_layer_but_the_cached(geometry: Geometry) -> None:
    """A quarter is in the cache; with requests that dear a layer is read from end to end."""
    found = gated(geometry, 1.0, in_units(geometry, 1000, 2000))
    span = LAYER * geometry.group_bytes
    assert 0.99 * LAYERS * span < found.bytes - HEAD * geometry.group_bytes <= LAYERS * span
    one_request = 1000 + LAYER
    assert found.seconds / MS == pytest.approx(
        HEAD / 2 + LAYERS * (1 + 3) * one_request, rel=0.01)


def test_requests_have_a_most_length(geometry: Geometry) -> None:
    found = gated(geometry, 1.0, in_units(geometry, 1000, 128))
    requests = LAYER / 128
    assert found.seconds / MS == pytest.approx(
        HEAD / 2 + LAYERS * (1 + 3 / requests) * (1000 * requests + LAYER), rel=0.02)


@pytest.mark.parametrize('probed', [True, False])
def test_scattered_groups_without_gaps(geometry: Geometry, probed: bool) -> None:
    """Of k groups out of n drawn at random, (k - 1) k / n are expected right behind another."""
    share = 0.2
    request_ms = 0.5 if probed else 16384 / geometry.group_bytes
    found = gated(geometry, share, in_units(geometry, 0.5, 100) if probed else None)
    wanted = share * LAYER * (1 - CACHED / (LAYERS * LAYER))
    requests = wanted - wanted ** 2 / LAYER
    scale, head = (MS, HEAD / 2) if probed else (1e-9 * geometry.group_bytes, HEAD)
    assert found.bytes / geometry.group_bytes == pytest.approx(HEAD + LAYERS * wanted, abs=LAYERS)
    assert found.seconds / scale == pytest.approx(
        head
        + LAYERS * (1 + 3 / requests) * (request_ms * requests + wanted), rel=0.05)


def test_nothing_where_all_is_in_the_window(geometry: Geometry) -> None:
    assert gated(geometry, 0.7, None, slots=5200) == (0, 0)
    assert gated(geometry, 0.0, None, slots=4000) == (0, 0)


@pytest.mark.parametrize('request_groups', [None, 4])
def test_the_same_every_time(geometry: Geometry, request_groups: int | None) -> None:
    costs = None if request_groups is None else in_units(geometry, request_groups, 64)
    assert gated(geometry, 0.3, costs) == gated(geometry, 0.3, costs)
