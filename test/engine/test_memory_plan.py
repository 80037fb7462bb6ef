"""The split of the DRAM budget: whole slots, never more than the budget, and the refusal."""

from pathlib import Path
import re

from generation_cases import opened
from hypothesis import given
from hypothesis import strategies as st
import pytest
from refusals import assert_error

from flash_llm_ros import _native
from flash_llm_ros.engine import EngineConfig
from flash_llm_ros.engine.byte_size import parse_byte_size
from flash_llm_ros.engine.memory.window_plan import plan_window, window_size
from flash_llm_ros.engine.plan import PlanRow, WindowSize, plan_memory
from flash_llm_ros.store.errors import ErrorCode, FlashLlmError
from flash_llm_ros.store.geometry import model_sections, plan_geometry

ROWS = st.lists(st.builds(PlanRow, st.sampled_from(['weights', 'KV cache', 'scratch']),
                          st.integers(0, 10 ** 9), st.just('a note')), max_size=4)


def size(group: int = 4096, least: int = 10, most: int = 10 ** 6, fixed: int = 0,
         a_slot: int = 0) -> WindowSize:
    """A window whose tables take `fixed` bytes and some for each slot."""
    return WindowSize(group, least, most, lambda slots: fixed + a_slot * slots)


@given(budget=st.integers(1, 10 ** 10), rows=ROWS, group=st.integers(1, 512).map(
    lambda blocks: blocks * 512), least=st.integers(1, 5000), more=st.integers(0, 10 ** 6),
    fixed=st.integers(0, 10 ** 7), a_slot=st.integers(0, 200))
def test_the_window_is_what_the_rest_leaves(budget: int, rows: list[PlanRow], group: int,
                                            least: int, more: int, fixed: int,
                                            a_slot: int) -> None:
    most = least + more
    window = size(group, least, most, fixed, a_slot)
    taken = sum(row.bytes for row in rows) + fixed
    if budget - taken < least * (group + a_slot):
        with assert_error(ErrorCode.BUDGET_TOO_SMALL):
            plan_memory(budget, rows, window)
        return
    plan = plan_memory(budget, rows, window)
    assert least <= plan.slots <= most and plan.window_bytes == plan.slots * group
    assert plan.rows[:-2] == tuple(rows)
    assert plan.rows[-2].bytes == fixed + a_slot * plan.slots
    assert plan.planned == taken + plan.slots * (group + a_slot) <= budget
    # Nothing is given away: either all slots of use, or less than one more fits.
    assert plan.slots == most or budget - plan.planned < group + a_slot


def numbers(table: str) -> dict[str, float]:
    """Megabytes of a printed table by the name of their row."""
    rows = re.findall(r'^  (.+?)\s+(\d+\.\d\d) MB', table, re.MULTILINE)
    return {name: float(megabytes) for name, megabytes in rows}


def test_table_adds_up() -> None:
    fixed = [PlanRow('resident weights', 30_000_000, 'as measured'), PlanRow('KV cache', 5_000, '')]
    plan = plan_memory(100_000_000, fixed, size(fixed=40_000))
    found = numbers(plan.table())
    assert list(found) == ['resident weights', 'KV cache', 'window bookkeeping', 'window',
                           'planned', 'budget']
    assert found['budget'] == 100 and found['resident weights'] == 30 and found['KV cache'] == 0.01
    parts = sum(found[name] for name in list(found)[:-2])
    assert found['window bookkeeping'] == 0.04
    assert parts == pytest.approx(found['planned'], abs=0.02)
    assert f'{plan.window_bytes // 4096} slots of 4096 bytes' in plan.table()


def test_the_plan_says_what_a_longer_context_takes(int8_store: Path) -> None:
    """It is what the plan of that context has."""
    taken = []
    for context in (EngineConfig.context_length, 4096):
        engine = opened(int8_store, context_length=context)
        taken.append(next(row for row in engine.plan.rows if row.name == 'KV cache'))
        engine.close()
    default, most = taken
    more = (most.bytes - default.bytes) / 1e6
    assert default.note == f'2048 tokens in int8; {more:.1f} MB more for 4096'
    assert most.note == '4096 tokens in int8; the model was trained for no more'


def test_refusal_names_all_rows_and_what_would_do() -> None:
    fixed = [PlanRow('resident weights', 30_000_000, 'x'), PlanRow('scratch', 5_000_000, 'y')]
    with pytest.raises(FlashLlmError) as error:
        plan_memory(36_000_000, fixed, size(4096, 500, 1000))
    message = str(error.value)
    found = numbers(message)
    assert list(found) == ['resident weights', 'scratch', 'window bookkeeping', 'window', 'planned',
                           'budget']
    assert found['window'] == pytest.approx(500 * 4096 / 1e6, abs=0.01)
    assert found['budget'] == 36.0
    assert found['planned'] == pytest.approx(37.05, abs=0.01)
    assert 'dram_budget is 36.00 MB' in message and 'at least 37.05 MB' in message
    plan_memory(int(found['planned'] * 1e6) + 10_000, fixed, size(4096, 500, 1000))


@pytest.mark.parametrize(('text', 'expected'), [
    ('96MB', 96_000_000), ('1.5GB', 1_500_000_000), ('64MiB', 64 << 20), (' 2 gib ', 2 << 30),
    ('1000B', 1000), ('10kb', 10_000), ('3KiB', 3072), ('7B', 7),
])
def test_byte_sizes(text: str, expected: int) -> None:
    assert parse_byte_size('budget', text) == expected


@pytest.mark.parametrize('text', [
    '', 'MB', '-5MB', '0', '0MB', '1e9', '5 XB', '96 MB of memory', '1,5GB', 'nan', 'inf', None,
    True, 1.5, -1, 0, 96, '96', '100000000', '9' * 400, '9' * 400 + 'MB', '2000000GB', 2 ** 60,
    [96],
], ids=lambda text: repr(text)[:20])
def test_wrong_byte_sizes(text: object) -> None:
    with assert_error(ErrorCode.INVALID_PARAMETER) as error:
        parse_byte_size('budget', text)
    assert str(error.value).startswith('budget is ') and "'96MB'" in str(error.value)
    assert (str(text).isdecimal() and text is not True) == ('without a unit' in str(error.value))


def test_a_hundred_thousand_slots_have_their_tables() -> None:
    """The row is what the core allocates (test_core_memory.py), and the budget holds it, too."""
    geometry = plan_geometry(128, 'int8', model_sections('bundled', 128, 30, 66_000, 1000, True))
    assert geometry.groups > 190_000
    grouped = ('bundle',)
    budget = 100_000 * geometry.group_bytes
    plan = plan_memory(budget, [PlanRow('weights', 5_000_000, '')],
                       window_size(geometry, grouped))
    cache = plan_window(geometry, plan.slots, grouped).cache_slots
    assert cache > 90_000
    tables = next(row.bytes for row in plan.rows if row.name == 'window bookkeeping')
    assert tables == _native.bookkeeping_bytes(geometry.groups, cache) > 1_000_000
    assert budget - geometry.group_bytes - 200 < plan.planned <= budget
