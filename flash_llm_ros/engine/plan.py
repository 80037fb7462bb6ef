"""The split of the DRAM budget, and the refusal when it is too small."""

from dataclasses import dataclass

from flash_llm_ros.store.errors import ErrorCode, FlashLlmError

_MB = 1e6


@dataclass(frozen=True)
class PlanRow:
    """One line of the plan."""

    name: str
    bytes: int
    note: str


@dataclass(frozen=True)
class MemoryPlan:
    """Rows in bytes; the window is what the other rows leave of the budget."""

    budget: int
    rows: tuple[PlanRow, ...]

    @property
    def planned(self) -> int:
        return sum(row.bytes for row in self.rows)

    @property
    def window_bytes(self) -> int:
        return next((row.bytes for row in self.rows if row.name == 'window'), 0)

    def table(self) -> str:
        """A table in megabytes (10^6 bytes) for people."""
        rows = [*self.rows, PlanRow('planned', self.planned, ''),
                PlanRow('budget', self.budget, 'the promise')]
        width = max(len(row.name) for row in rows)
        return '\n'.join(f'  {row.name:<{width}}  {row.bytes / _MB:9.2f} MB  {row.note}'.rstrip()
                         for row in rows)


def plan_memory(budget: int, fixed: list[PlanRow], group_bytes: int, least_slots: int,
                most_slots: int) -> MemoryPlan:
    """Give the window as many slots of `group_bytes` as are left, but no more than are of use.

    Raises FlashLlmError(BUDGET_TOO_SMALL) with the table when fewer than `least_slots` are left.
    """
    least_window = least_slots * group_bytes
    left = budget - sum(row.bytes for row in fixed)
    if left < least_window:
        needed = MemoryPlan(budget, (*fixed, PlanRow('window', least_window, 'the least')))
        raise FlashLlmError(
            ErrorCode.BUDGET_TOO_SMALL,
            f'dram_budget is {budget / _MB:.2f} MB; this store needs at least '
            f'{needed.planned / _MB:.2f} MB:\n{needed.table()}')
    slots = min(left // group_bytes, most_slots)
    return MemoryPlan(budget, (*fixed, PlanRow('window', slots * group_bytes,
                                               f'{slots} slots of {group_bytes} bytes')))
