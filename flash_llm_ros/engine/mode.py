"""Which kind of feed-forward block an engine runs, and why."""

from collections.abc import Mapping
import math

from flash_llm_ros.engine.memory.window_plan import groups_read
from flash_llm_ros.engine.model.feed_forward.gated import GatedFeedForward
from flash_llm_ros.store.errors import ErrorCode, FlashLlmError
from flash_llm_ros.store.geometry import Geometry
from flash_llm_ros.store.manifest import Calibration, Manifest

MOST_PERPLEXITY = 1.01     # of mode gated, in that of mode exact, that auto takes


def check_mode(mode: str, manifest: Manifest) -> None:
    """Raise FlashLlmError(INVALID_PARAMETER) where a store cannot be run in this mode."""
    if mode == 'gated' and manifest.calibration is None:
        why = ('it was converted without calibration'
               if manifest.model.feed_forward.sparse_by_nature else
               'its model uses every neuron for every token')
        raise FlashLlmError(ErrorCode.INVALID_PARAMETER,
                            f'mode is gated, but {why}; it must be auto or exact.')


def resolved_mode(mode: str, manifest: Manifest, slots: Mapping[str, int]) -> tuple[str, str]:
    """'exact' or 'gated', and a sentence that says why.

    `slots`: about how many the window has in each mode that the store has; 0: it does not fit.
    """
    if mode != 'auto':
        return mode, f'mode {mode}, as it was asked for'
    if manifest.calibration is None:
        return 'exact', ('mode exact: the store was converted without calibration'
                         if manifest.model.feed_forward.sparse_by_nature else
                         'mode exact: the model uses every neuron for every token')
    return _cheaper(manifest.geometry, manifest.calibration, slots)


def _cheaper(geometry: Geometry, calibration: Calibration, slots: Mapping[str, int]
             ) -> tuple[str, str]:
    ratio = calibration.perplexity_ratio
    if not ratio <= MOST_PERPLEXITY:
        return 'exact', (f'mode exact: by its calibration, mode gated has {ratio:.3f} times its '
                         f'perplexity, and auto takes at most {MOST_PERPLEXITY}')
    if not slots['gated']:
        return 'exact', 'mode exact: the predictors of mode gated do not fit into dram_budget'
    group = geometry.group_bytes / 1e6
    gated = group * groups_read(geometry, slots['gated'], GatedFeedForward.grouped,
                                calibration.groups_share)
    exact = group * groups_read(geometry, slots['exact']) if slots['exact'] else math.inf
    if gated < exact:
        return 'gated', (f'mode gated: a token reads about {gated:.1f} MB, in mode exact '
                         f'{exact:.1f} MB, for {ratio:.3f} times its perplexity')
    return 'exact', (f'mode exact: a token reads about {exact:.1f} MB, in mode gated '
                     f'{gated:.1f} MB')
