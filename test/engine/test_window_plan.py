"""How the window's slots are shared out, for any geometry and any number of slots."""

from hypothesis import given
from hypothesis import strategies as st
import pytest

from flash_llm_ros.engine.memory.window_plan import (
    WindowPlan,
    groups_streamed,
    head_index,
    least_slots,
    most_slots,
    plan_window,
)
from flash_llm_ros.model_spec import ExpertsSpec
from flash_llm_ros.store.geometry import (
    EXPERT_SECTIONS,
    Geometry,
    model_sections,
    plan_geometry,
)

# What mode exact, mode gated and experts read group by group.
GROUPED = ((), ('bundle',), EXPERT_SECTIONS)
EXPERTS_AND_OTHERS = ExpertsSpec(5, 2, shared=40, dense_layers=1, dense_size=70)


@st.composite
def geometries(draw: st.DrawFn) -> Geometry:
    dim = draw(st.integers(16, 300))
    layout, experts = draw(st.sampled_from(
        [('split', None), ('split', ExpertsSpec(5, 2)), ('split', EXPERTS_AND_OTHERS),
         ('bundled', None)]))
    sections = model_sections(layout, dim, draw(st.integers(1, 5)), draw(st.integers(1, 900)),
                              draw(st.integers(1, 1500)), draw(st.booleans()), experts=experts)
    return plan_geometry(dim, draw(st.sampled_from(['int8', 'int4', 'fp16'])), sections)


def shares(geometry: Geometry, plan: WindowPlan, names: tuple[str, ...]) -> list[float]:
    return [plan.pins.get(index, 0) / section.groups
            for index, section in enumerate(geometry.sections) if section.name in names]


@given(data=st.data(), geometry=geometries(), grouped=st.sampled_from(GROUPED))
def test_every_slot_has_one_use(data: st.DataObject, geometry: Geometry,
                                grouped: tuple[str, ...]) -> None:
    least, most = least_slots(geometry, grouped), most_slots(geometry)
    assert least <= most
    slots = data.draw(st.one_of(st.integers(least, most), st.sampled_from([least, most])))
    plan = plan_window(geometry, slots, grouped)
    assert plan.slots == slots == (sum(plan.pins.values()) + plan.chunk_groups * plan.chunks
                                   + plan.cache_slots)
    for index, count in plan.pins.items():
        assert 0 < count <= geometry.sections[index].groups
    allowed = {index for index, section in enumerate(geometry.sections)
               if section.layer >= 0 and section.name not in grouped} | {head_index(geometry)}
    assert plan.pins.keys() <= allowed
    # Of everything that each token needs the same share, to a group.
    total = sum(geometry.sections[index].groups for index in allowed)
    pinned = sum(plan.pins.values())
    assert all(abs(plan.pins.get(index, 0) - pinned * geometry.sections[index].groups / total) <= 1
               for index in allowed)
    # The ring takes little of what would else be pinned, and nothing where all of it is; where
    # it would take more than a quarter of a small window, its chunks are smaller.
    ring, least_ring = plan.chunks * plan.chunk_groups, 6 * plan.chunk_groups
    assert ring >= least_ring
    assert ring - least_ring <= max(0, total - (slots - least_ring)) / 16 or ring == least_ring
    read = plan.chunk_groups * geometry.group_bytes
    assert read <= max(512 * 1024, geometry.group_bytes)
    if least_ring > slots // 4:
        assert read <= max(256 * 1024, geometry.group_bytes)


@given(geometry=geometries(), grouped=st.sampled_from(GROUPED))
def test_the_largest_window_holds_all_that_is_used(geometry: Geometry,
                                                   grouped: tuple[str, ...]) -> None:
    plan = plan_window(geometry, most_slots(geometry), grouped)
    by_group = sum(section.groups for section in geometry.sections if section.name in grouped)
    always = {'gate_up', 'down', 'bundle'} - set(grouped)
    assert set(shares(geometry, plan, always)) <= {1.0}
    assert plan.pins[head_index(geometry)] == geometry.sections[head_index(geometry)].groups
    assert plan.cache_slots >= by_group
    assert groups_streamed(geometry, plan, grouped) == 0


@given(geometry=geometries())
def test_the_least_window_of_mode_gated_holds_one_layer(geometry: Geometry) -> None:
    plan = plan_window(geometry, least_slots(geometry, ('bundle',)), ('bundle',))
    assert plan.cache_slots > max((section.groups for section in geometry.sections
                                   if section.name == 'bundle'), default=0)
    assert not plan.pins


@pytest.mark.parametrize('tied', [True, False])
def test_head(tied: bool) -> None:
    geometry = plan_geometry(64, 'int8', model_sections('split', 64, 2, 100, 50, tied))
    assert geometry.sections[head_index(geometry)].name == ('embedding' if tied else 'head')


def test_a_streamed_read_is_large_but_within_a_section_and_no_smaller_than_a_group() -> None:
    long = plan_geometry(64, 'int8', model_sections('split', 64, 5, 20_000, 50, True))
    short = plan_geometry(64, 'int8', model_sections('split', 64, 2, 100, 50, True))
    large = plan_geometry(8192, 'fp16', model_sections('bundled', 8192, 1, 8, 8, True))
    read = plan_window(long, least_slots(long)).chunk_groups * long.group_bytes
    assert 256 * 1024 - long.group_bytes < read <= 256 * 1024
    wide = plan_window(long, most_slots(long)).chunk_groups * long.group_bytes
    assert 512 * 1024 - long.group_bytes < wide <= 512 * 1024
    assert plan_window(short, least_slots(short)).chunk_groups \
        == max(section.groups for section in short.sections)
    assert large.group_bytes > 4 * 8192
    assert plan_window(large, least_slots(large)).chunk_groups >= 1


def test_the_ring_of_a_large_model_bridges_half_a_layer() -> None:
    wide = plan_geometry(1536, 'int4', model_sections('split', 1536, 28, 8960, 5000, True))
    layer = sum(section.groups for section in wide.sections if section.layer == 0)
    total = sum(section.groups for section in wide.sections)
    plan = plan_window(wide, total // 4)
    assert layer / 2 - plan.chunk_groups < plan.chunks * plan.chunk_groups <= layer / 2
    assert plan_window(wide, most_slots(wide)).chunks < plan.chunks
