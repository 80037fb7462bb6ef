"""The split of the DRAM budget: whole slots, never more than the budget, and the refusal."""

import re

from hypothesis import given
from hypothesis import strategies as st
import pytest

from flash_llm_ros.engine.byte_size import parse_byte_size
from flash_llm_ros.engine.plan import MemoryPlan, PlanRow, plan_memory
from flash_llm_ros.store.errors import ErrorCode, FlashLlmError

ROWS = st.lists(st.builds(PlanRow, st.sampled_from(['weights', 'KV cache', 'scratch']),
                          st.integers(0, 10 ** 9), st.just('a note')), max_size=4)


@given(budget=st.integers(1, 10 ** 10), fixed=ROWS, group=st.integers(1, 512).map(
    lambda blocks: blocks * 512), least=st.integers(1, 5000), more=st.integers(0, 10 ** 6))
def test_the_window_is_what_the_rest_leaves(budget: int, fixed: list[PlanRow], group: int,
                                            least: int, more: int) -> None:
    most = least + more
    taken = sum(row.bytes for row in fixed)
    if budget - taken < least * group:
        with pytest.raises(FlashLlmError) as error:
            plan_memory(budget, fixed, group, least, most)
        assert error.value.code is ErrorCode.BUDGET_TOO_SMALL
        return
    plan = plan_memory(budget, fixed, group, least, most)
    slots, rest = divmod(plan.window_bytes, group)
    assert rest == 0 and least <= slots <= most
    assert plan.rows[:-1] == tuple(fixed)
    assert plan.planned == taken + plan.window_bytes <= budget
    # Nothing is given away: either all slots of use, or less than one more fits.
    assert slots == most or budget - plan.planned < group


def numbers(table: str) -> dict[str, float]:
    """Megabytes of a printed table by the name of their row."""
    rows = re.findall(r'^  (.+?)\s+(\d+\.\d\d) MB', table, re.MULTILINE)
    return {name: float(megabytes) for name, megabytes in rows}


def test_table_adds_up() -> None:
    fixed = [PlanRow('resident weights', 30_000_000, 'as measured'), PlanRow('KV cache', 5_000, '')]
    plan = plan_memory(100_000_000, fixed, 4096, 10, 10 ** 6)
    found = numbers(plan.table())
    assert list(found) == ['resident weights', 'KV cache', 'window', 'planned', 'budget']
    assert found['budget'] == 100 and found['resident weights'] == 30 and found['KV cache'] == 0.01
    parts = found['resident weights'] + found['KV cache'] + found['window']
    assert parts == pytest.approx(found['planned'], abs=0.02)
    assert f'{plan.window_bytes // 4096} slots of 4096 bytes' in plan.table()


def test_refusal_names_all_rows_and_what_would_do() -> None:
    fixed = [PlanRow('resident weights', 30_000_000, 'x'), PlanRow('scratch', 5_000_000, 'y')]
    with pytest.raises(FlashLlmError) as error:
        plan_memory(36_000_000, fixed, 4096, 500, 1000)
    message = str(error.value)
    found = numbers(message)
    assert list(found) == ['resident weights', 'scratch', 'window', 'planned', 'budget']
    assert found['window'] == pytest.approx(500 * 4096 / 1e6, abs=0.01)
    assert found['budget'] == 36.0
    assert found['planned'] == pytest.approx(37.05, abs=0.01)
    assert 'dram_budget is 36.00 MB' in message and 'at least 37.05 MB' in message
    plan_memory(int(found['planned'] * 1e6) + 10_000, fixed, 4096, 500, 1000)


def test_a_plan_without_a_window() -> None:
    assert MemoryPlan(5, ()).window_bytes == 0


@pytest.mark.parametrize(('text', 'size'), [
    ('96MB', 96_000_000), ('1.5GB', 1_500_000_000), ('64MiB', 64 << 20), (' 2 gib ', 2 << 30),
    ('1000', 1000), (1000, 1000), ('10kb', 10_000), ('3KiB', 3072), ('7B', 7),
])
def test_byte_sizes(text: str | int, size: int) -> None:
    assert parse_byte_size('budget', text) == size


@pytest.mark.parametrize('text', [
    '', 'MB', '-5MB', '0', '0MB', '1e9', '5 XB', '96 MB of memory', '1,5GB', 'nan', 'inf', None,
    True, 1.5, -1, 0, '9' * 400, '2000000GB', 2 ** 60, [96],
], ids=lambda text: repr(text)[:20])
def test_wrong_byte_sizes(text: object) -> None:
    with pytest.raises(FlashLlmError) as error:
        parse_byte_size('budget', text)
    assert error.value.code is ErrorCode.INVALID_PARAMETER
    assert str(error.value).startswith('budget is ') and '96MB' in str(error.value)
