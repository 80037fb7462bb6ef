"""Does the process keep the promise of its memory plan? Knows no ROS."""

from pathlib import Path

from flash_llm_ros.node.health import Health, Level, worst

STATUS = Path('/proc/self/status')


def swapped_bytes(status: Path = STATUS) -> int:
    """Return how much of this process was swapped out, in bytes."""
    for line in status.read_text().splitlines():
        if line.startswith('VmSwap:'):
            return int(line.split()[1]) * 1024
    return 0


def memory_health(
    resident: int, bare: int, planned: int, budget: int, tolerance: int, swapped: int,
) -> Health:
    """Compare the resident set with the promise; all in bytes.

    ``bare`` is the resident set before the store was opened; ``tolerance`` is what ROS and Python
    may take beside the engine, twice as much is an error.
    """
    grown = resident - bare
    over = grown - budget
    found = []
    if over > tolerance:
        found.append((Level.ERROR if over > 2 * tolerance else Level.WARN, (
            f'The process has grown by {grown / 1e6:.1f} MB, which is {over / 1e6:.1f} MB more '
            'than `memory.dram_budget`; please report it.')))
    if swapped > 0:
        found.append((Level.WARN, (
            f'{swapped / 1e6:.1f} MB of the process were swapped out, so that answers stall: '
            'lower `memory.dram_budget`, or allow to lock memory (RLIMIT_MEMLOCK).')))
    values = {'resident set (B)': resident, 'before the store was opened (B)': bare,
              'grown by (B)': grown, 'swapped out (B)': swapped}
    return worst(found, f'{planned} of {budget} B planned', values)
