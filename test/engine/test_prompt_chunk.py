"""Prompts' chunks where nobody has said how long they are."""

from pathlib import Path
from types import SimpleNamespace

from generation_cases import opened, opened_tightly
import pytest

from flash_llm_ros.engine.memory.window_plan import least_slots, most_slots
from flash_llm_ros.engine.prompt_chunk import chosen_chunk, share_needed
from flash_llm_ros.model_spec import ExpertsSpec
from flash_llm_ros.store.device_profile import ReadCosts
from flash_llm_ros.store.geometry import EXPERT_SECTIONS, model_sections, plan_geometry

EXPERTS = ExpertsSpec(64, 8)
GEOMETRY = plan_geometry(2048, 'int4', model_sections('split', 2048, 16, 1024, 50_304, False,
                                                      experts=EXPERTS))
MOST, LEAST = most_slots(GEOMETRY), least_slots(GEOMETRY, EXPERT_SECTIONS)
QUARTER = MOST // 4
COSTS = ReadCosts(100e-6, 1e-9, 1 << 20, 1e-9)


def chunk(slots_of, costs=COSTS, context: int = 4096, experts=EXPERTS) -> int:
    manifest = SimpleNamespace(geometry=GEOMETRY, model=SimpleNamespace(
        feed_forward=SimpleNamespace(experts=experts)))
    return chosen_chunk(manifest, EXPERT_SECTIONS, slots_of, costs, context)


@pytest.mark.parametrize('costs', [COSTS, None])
def test_reading_is_weighed_against_the_window(costs: ReadCosts | None) -> None:
    assert chunk(lambda tokens: MOST, costs) == 64                      # nothing is read
    assert chunk(lambda tokens: QUARTER, costs) == 512                  # it costs nothing
    assert chunk(lambda tokens: QUARTER, costs, context=300) == 128
    assert chunk(lambda tokens: QUARTER, costs, experts=None) == 64     # dense
    assert chunk(lambda tokens: LEAST * (tokens <= 16), costs) == 16    # others do not fit
    assert chunk(lambda tokens: 0, costs) == 64                         # none fits
    # Half of the experts are missing. A prompt of 512 tokens reads nearly all of them 8 times in
    # chunks of 64 and once in one; 128 tokens of an answer read them 16 times. So 24 halves are
    # 17 times a half and a fifth: more than that must the scratch not take of the window.
    for taken, expected in ((0.1, 512), (0.19, 512), (0.23, 64)):
        assert chunk(lambda tokens, taken=taken: int(MOST * (0.5 - taken * (tokens > 64))),
                     costs) == expected


def test_a_share_is_that_of_independent_choices() -> None:
    assert share_needed(EXPERTS, 1) == 1 / 8
    assert share_needed(EXPERTS, 2) == pytest.approx(1 / 8 + 7 / 8 / 8)


def test_the_engine_says_what_it_chose(experts_store: Path, int8_store: Path) -> None:
    for store, opens in ((experts_store, opened_tightly), (int8_store, opened)):
        engine = opens(store)
        found = engine.config.prefill_chunk
        assert engine.model.chunk == found and f'{found} prompt tokens' in engine.plan.table()
        engine.close()
        if store is int8_store:
            assert found == 64
