"""Plots as SVG texts; matplotlib is the optional extra `[report]`."""

from collections.abc import Sequence
import io
from typing import TYPE_CHECKING

import numpy as np

from flash_llm_ros.engine.numpy_policies import DEFAULT_POLICY
from flash_llm_ros.report.figures import WINDOWS, BudgetFloor, LayerActivity
from flash_llm_ros.store.manifest import Calibration

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_SIZE = (7.0, 3.4)      # inches


class MatplotlibMissingError(ImportError):
    """The extra is not installed; the text says how to."""

    def __init__(self) -> None:
        super().__init__('a report needs matplotlib: pip install "flash_llm_ros[report]"')


def require_matplotlib() -> None:
    """Raise MatplotlibMissingError where it is not installed."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise MatplotlibMissingError from None


def _new() -> tuple['Figure', 'Axes']:
    from matplotlib.figure import Figure  # without pyplot: no display, no global state

    figure = Figure(_SIZE, layout='constrained')
    axes = figure.subplots()
    axes.grid(alpha=0.3)
    return figure, axes


def _svg(figure: 'Figure') -> str:
    import matplotlib as mpl

    text = io.StringIO()
    # The same figures give the same bytes: no random ids, no date.
    with mpl.rc_context({'svg.hashsalt': 'flash_llm'}):
        figure.savefig(text, format='svg', metadata={'Date': None, 'Creator': None})
    svg = text.getvalue()
    return svg[svg.index('<svg'):]


def perplexity(calibration: Calibration) -> str:
    """Perplexity against sparsity, relative to exact mode."""
    keys = sorted(calibration.perplexity, key=float)
    values = [calibration.perplexity[key] / calibration.perplexity['0.00'] for key in keys]
    figure, axes = _new()
    axes.plot([100 * float(key) for key in keys], values, 'o-')
    axes.axvline(100 * calibration.default_sparsity, ls='--', color='grey', label='default')
    axes.set(xlabel='neurons left out, %', ylabel='perplexity / exact')
    axes.legend()
    return _svg(figure)


def recall(calibration: Calibration) -> str:
    """Held-out recall, precision and kept contribution of each layer's predictor."""
    figure, axes = _new()
    for name in ('recall', 'precision', 'kept'):
        axes.plot([getattr(facts, name) for facts in calibration.predictors], 'o-', ms=3,
                  label='kept contribution' if name == 'kept' else name)
    axes.set(xlabel='layer', ylabel='share', ylim=(0, 1.02))
    axes.legend()
    return _svg(figure)


def frequencies(activities: Sequence[LayerActivity]) -> str:
    """How often neurons are used, from the hottest to the coldest, of some layers."""
    figure, axes = _new()
    for activity in _some(activities):
        share = np.linspace(0, 100, len(activity.frequencies))
        axes.plot(share, 100 * activity.frequencies,
                  label=f'layer {activity.layer} (Gini {activity.gini:.2f})')
    axes.set(xlabel='neurons, % (hottest first)', ylabel='used by, % of the tokens')
    axes.legend()
    return _svg(figure)


def friends(activities: Sequence[LayerActivity]) -> str:
    """Of how many neurons each is the closest friend: a power law, and the friends are hot."""
    figure, axes = _new()
    for activity in _some(activities):
        counts = activity.friends[activity.friends > 0]
        if len(counts):
            axes.loglog(np.arange(1, len(counts) + 1), counts, '.-',
                        label=f'layer {activity.layer}')
    axes.set(xlabel='rank of a neuron', ylabel='neurons whose closest friend it is')
    axes.legend()
    return _svg(figure)


def hits(rates: dict[str, list[float]]) -> str:
    """Hit rate against the window's size."""
    names = {DEFAULT_POLICY: f'{DEFAULT_POLICY} (default)', 'belady': 'optimum (Belady)'}
    figure, axes = _new()
    for name, values in rates.items():
        axes.plot([100 * share for share in WINDOWS], [100 * value for value in values], 'o-',
                  label=names[name])
    axes.set(xlabel='window, % of the groups', ylabel='found in the window, %', ylim=(0, 102))
    axes.legend()
    return _svg(figure)


def floors(found: Sequence[BudgetFloor]) -> str:
    """Least time of a token against the budget."""
    figure, axes = _new()
    axes.plot([floor.budget / 1e6 for floor in found], [floor.milliseconds for floor in found],
              'o-')
    axes.set(xlabel='DRAM budget, MB', ylabel='reading a token, ms at least')
    return _svg(figure)


def _some(activities: Sequence[LayerActivity]) -> list[LayerActivity]:
    """The first, the last, and two between."""
    indices = sorted({round(part * (len(activities) - 1) / 3) for part in range(4)})
    return [activities[index] for index in indices]
