"""The settings that a report recommends for a budget, each with its reason."""

from dataclasses import dataclass

from flash_llm_ros.report.figures import BudgetFloor


@dataclass(frozen=True)
class Setting:
    """A parameter of the node, and why. What is best by default is not recommended."""

    name: str
    value: str | int
    reason: str


def recommended(floor: BudgetFloor) -> list[Setting]:
    """Settings for one budget."""
    settings = [Setting('memory.dram_budget', f'{-(-floor.budget // 1_000_000)}MB', 'as asked')]
    if floor.read_bytes:
        settings.append(Setting('memory.prefill_chunk', 128,
                                'each chunk of a prompt is a pass over the flash'))
    return settings
