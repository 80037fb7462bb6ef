"""Which kind of feed-forward block an engine runs, and why."""

from collections.abc import Mapping
from typing import NamedTuple

from flash_llm_ros import onnx_runtime
from flash_llm_ros.engine.memory.read_estimate import estimated_reads
from flash_llm_ros.engine.memory.window_plan import plan_window
from flash_llm_ros.engine.model.feed_forward.gated import GatedFeedForward
from flash_llm_ros.store.device_profile import ReadCosts
from flash_llm_ros.store.errors import ErrorCode, FlashLlmError
from flash_llm_ros.store.geometry import Geometry
from flash_llm_ros.store.manifest import Calibration, Manifest

# Of mode gated, in that of mode exact, that auto takes: the measured ratio and its standard error.
MOST_PERPLEXITY = 1.01


class Choice(NamedTuple):
    """A mode that is not auto, and a sentence that says why."""

    mode: str
    reason: str


def check_mode(mode: str, manifest: Manifest) -> None:
    """Raise FlashLlmError(INVALID_PARAMETER) where a store cannot be run in this mode."""
    why = _why_exact(manifest)
    if mode == 'gated' and why is not None:
        raise FlashLlmError(ErrorCode.INVALID_PARAMETER,
                            f'mode is gated, but {why}; it must be auto or exact.')


def ranked_modes(mode: str, manifest: Manifest, slots: Mapping[str, int],
                 costs: ReadCosts | None) -> list[Choice]:
    """What to run, and what in its place where that turns out to take too much memory.

    `slots`: about how many the window has in each mode that the store has; 0: it does not fit.
    `costs`: of scattered reads on this device; None where it was not probed.
    """
    if mode != 'auto':
        return [Choice(mode, f'mode {mode}, as it was asked for')]
    why = _why_exact(manifest)
    if why is not None:
        return [Choice('exact', f'mode exact: {why}')]
    return _by_reads(manifest.geometry, manifest.calibration, slots, costs)


def _why_exact(manifest: Manifest) -> str | None:
    """Why mode gated cannot be; None where it can."""
    if manifest.calibration is not None:
        if not onnx_runtime.TWO_BITS and any((found.kind, found.size) == ('sketch', 2)
                                             for found in manifest.calibration.predictors):
            return ('its predictors have 2 bits, which ONNX Runtime computes since 1.24; '
                    '`flash_llm calibrate` makes others here')
        return None
    block = manifest.model.feed_forward
    if block.experts is not None:
        return (f"the model's own router chooses {block.experts.active} of {block.experts.count} "
                'experts a layer for every token')
    return ('the store was converted without calibration' if block.sparse_by_nature else
            'the model uses every neuron for every token')


def _by_reads(geometry: Geometry, calibration: Calibration, slots: Mapping[str, int],
              costs: ReadCosts | None) -> list[Choice]:
    price = calibration.perplexity_text
    if not calibration.perplexity_ratio + calibration.perplexity_error <= MOST_PERPLEXITY:
        return [Choice('exact', f'mode exact: by its calibration, mode gated has {price} '
                       f'times its perplexity, and auto takes at most {MOST_PERPLEXITY}')]
    no_room = Choice('exact', 'mode exact: dram_budget has no room for mode gated and its '
                     'predictors')
    if not slots['gated']:
        return [no_room]
    if not slots['exact']:
        return [Choice('gated', 'mode gated: dram_budget has no room for mode exact')]
    # Of a pass. In mode exact one may give several tokens, guessed from the text before; how many
    # are right is not known before a request is there, so they are not counted.
    grouped = GatedFeedForward.grouped
    gated = estimated_reads(geometry, plan_window(geometry, slots['gated'], grouped), costs,
                            grouped, calibration.groups_share)
    exact = estimated_reads(geometry, plan_window(geometry, slots['exact']), costs)
    guess = '' if costs else '; a guess, as the device was not probed'
    if gated.seconds < exact.seconds:
        return [Choice('gated', f"mode gated: a pass's reads take about {gated}, in mode exact "
                       f'{exact}, for {price} times its perplexity{guess}'), no_room]
    return [Choice('exact', f"mode exact: a pass's reads take about {exact}, in mode gated "
                   f'{gated}{guess}')]
