"""Which kind of feed-forward block an engine runs, and why."""

from collections.abc import Mapping
import math
from typing import NamedTuple

from flash_llm_ros.engine.memory.window_plan import groups_read
from flash_llm_ros.engine.model.feed_forward.gated import GatedFeedForward
from flash_llm_ros.store.errors import ErrorCode, FlashLlmError
from flash_llm_ros.store.geometry import Geometry
from flash_llm_ros.store.manifest import Calibration, Manifest

MOST_PERPLEXITY = 1.01     # of mode gated, in that of mode exact, that auto takes


class Choice(NamedTuple):
    """A mode that is not auto, and a sentence that says why."""

    mode: str
    reason: str


def check_mode(mode: str, manifest: Manifest) -> None:
    """Raise FlashLlmError(INVALID_PARAMETER) where a store cannot be run in this mode."""
    if mode == 'gated' and manifest.calibration is None:
        why = ('it was converted without calibration'
               if manifest.model.feed_forward.sparse_by_nature else
               'its model uses every neuron for every token')
        raise FlashLlmError(ErrorCode.INVALID_PARAMETER,
                            f'mode is gated, but {why}; it must be auto or exact.')


def ranked_modes(mode: str, manifest: Manifest, slots: Mapping[str, int]) -> list[Choice]:
    """What to run, and what in its place where that turns out to take too much memory.

    `slots`: about how many the window has in each mode that the store has; 0: it does not fit.
    """
    if mode != 'auto':
        return [Choice(mode, f'mode {mode}, as it was asked for')]
    if manifest.calibration is None:
        return [Choice('exact', 'mode exact: the store was converted without calibration'
                       if manifest.layout == 'bundled' else
                       'mode exact: the model uses every neuron for every token')]
    return _by_reads(manifest.geometry, manifest.calibration, slots)


def _by_reads(geometry: Geometry, calibration: Calibration,
              slots: Mapping[str, int]) -> list[Choice]:
    ratio = calibration.perplexity_ratio
    if not ratio <= MOST_PERPLEXITY:
        return [Choice('exact', f'mode exact: by its calibration, mode gated has {ratio:.3f} '
                       f'times its perplexity, and auto takes at most {MOST_PERPLEXITY}')]
    no_room = Choice('exact', 'mode exact: dram_budget has no room for mode gated and its '
                     'predictors')
    if not slots['gated']:
        return [no_room]
    group = geometry.group_bytes / 1e6
    gated = group * groups_read(geometry, slots['gated'], GatedFeedForward.grouped,
                                calibration.groups_share)
    exact = group * groups_read(geometry, slots['exact']) if slots['exact'] else math.inf
    if gated < exact:
        return [Choice('gated', f'mode gated: a token reads about {gated:.1f} MB, in mode exact '
                       f'{exact:.1f} MB, for {ratio:.3f} times its perplexity'), no_room]
    return [Choice('exact', f'mode exact: a token reads about {exact:.1f} MB, in mode gated '
                   f'{gated:.1f} MB')]
