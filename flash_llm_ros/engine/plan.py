"""The split of the DRAM budget over the engine's parts, and the refusal when it is too small."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from flash_llm_ros.store.errors import ErrorCode, FlashLlmError

_MB = 1e6


@dataclass(frozen=True)
class PlanRow:
    """One line of the plan."""

    name: str
    bytes: int
    note: str = ''


class Part:
    """What takes DRAM beside the window, in the order of its life; each step may be left out.

    What `load` takes is measured, since libraries do not say; what `buffers` names is exact.
    """

    def estimate(self) -> list[PlanRow]:
        """The least that loading takes."""
        return []

    def load(self) -> None:
        """Have in memory what does not depend on the size of the window."""

    def warm(self) -> None:
        """Have in memory what a first use brings there: code was released after loading."""

    def buffers(self) -> list[PlanRow]:
        """What is allocated once the plan stands."""
        return []


@dataclass(frozen=True)
class MemoryPlan:
    """Rows in bytes; the window and its bookkeeping are what the others leave of the budget."""

    budget: int
    rows: tuple[PlanRow, ...]
    slots: int = 0      # of the window

    @property
    def planned(self) -> int:
        return sum(row.bytes for row in self.rows)

    @property
    def window_bytes(self) -> int:
        return next((row.bytes for row in self.rows if row.name == 'window'), 0)

    def table(self) -> str:
        """A table in megabytes (10^6 bytes) for people."""
        rows = [*self.rows, PlanRow('planned', self.planned),
                PlanRow('budget', self.budget, 'the promise')]
        width = max(len(row.name) for row in rows)
        return '\n'.join(f'  {row.name:<{width}}  {row.bytes / _MB:9.2f} MB  {row.note}'.rstrip()
                         for row in rows)


@dataclass(frozen=True)
class WindowSize:
    """How many slots there may be, of how many bytes, and what so many take beside themselves."""

    group_bytes: int
    least_slots: int
    most_slots: int
    bookkeeping: Callable[[int], int]       # slots -> bytes
    content: Callable[[int], str] = lambda slots: ''    # what they hold, for people

    def rows(self, slots: int) -> tuple[PlanRow, PlanRow]:
        return (PlanRow('window bookkeeping', self.bookkeeping(slots), 'tables of its slots'),
                PlanRow('window', slots * self.group_bytes,
                        f'{slots} slots of {self.group_bytes} bytes{self.content(slots)}'))

    def slots_in(self, left: int) -> int:
        """The most slots that fit into so many bytes with their tables; fewer than the least: 0."""
        slots = min(left // self.group_bytes, self.most_slots)
        while slots >= self.least_slots:
            above = slots * self.group_bytes + self.bookkeeping(slots) - left
            if above <= 0:
                return slots
            slots -= max(1, above // (2 * self.group_bytes))    # tables shrink with the slots
        return 0


def plan_memory(budget: int, fixed: Sequence[PlanRow], window: WindowSize) -> MemoryPlan:
    """Give the window as many slots as are left, but no more than are of use.

    Raises FlashLlmError(BUDGET_TOO_SMALL) with the table when the least do not fit.
    """
    slots = window.slots_in(budget - sum(row.bytes for row in fixed))
    if slots:
        return MemoryPlan(budget, (*fixed, *window.rows(slots)), slots)
    needed = MemoryPlan(budget, (*fixed, *window.rows(window.least_slots)))
    raise FlashLlmError(
        ErrorCode.BUDGET_TOO_SMALL,
        f'dram_budget is {budget / _MB:.2f} MB; this store needs at least '
        f'{needed.planned / _MB:.2f} MB:\n{needed.table()}')
