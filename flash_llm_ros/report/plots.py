"""What a report draws."""

from collections.abc import Sequence

from flash_llm_ros.report.figures import BudgetFloor
from flash_llm_ros.report.line_plot import Line, line_plot
from flash_llm_ros.store.device_profile import DeviceProfile
from flash_llm_ros.store.manifest import Calibration


def reads_by_budget(floors: Sequence[BudgetFloor]) -> str:
    points = [(floor.budget / 1e6, floor.read_bytes / 1e6) for floor in floors]
    return line_plot('What a token has to read', 'DRAM budget in MB',
                     'MB from flash a token', [Line('mode exact', points)])


def time_by_budget(floors: Sequence[BudgetFloor]) -> str:
    """`floors` of a device that was probed."""
    points = [(floor.budget / 1e6, floor.milliseconds) for floor in floors]
    return line_plot('The least time of a token', 'DRAM budget in MB',
                     'ms of reading a token', [Line('mode exact', points)])


def scattered_reads(profile: DeviceProfile) -> str:
    """How much a device delivers by the length of reads, each depth a line."""
    lines = [Line(f'{depth} at once', [
        (each.read_bytes, each.bytes_per_second / 1e6) for each in profile.measurements
        if each.pattern == 'random' and each.in_flight == depth]) for depth in profile.depths]
    return line_plot(f'{profile.device.name}: scattered reads', 'bytes of a read', 'MB/s', lines,
                     x_ticks={size: _bytes(size) for size in profile.sizes})


def predictors_by_layer(calibration: Calibration) -> str:
    shares = {'zeros': [facts.zeros for facts in calibration.predictors],
              'recall': [facts.recall for facts in calibration.predictors],
              'precision': [facts.precision for facts in calibration.predictors]}
    return line_plot('Predictors on held-out text', 'layer', '%', [
        Line(name, [(layer, 100 * share) for layer, share in enumerate(values)])
        for name, values in shares.items()])


def _bytes(size: int) -> str:
    for unit, name in ((1 << 20, 'Mi'), (1 << 10, 'Ki')):
        if size >= unit:
            return f'{size / unit:g} {name}'
    return str(size)
