"""How many tokens of a prompt share a pass, where nobody has said it."""

from collections.abc import Callable, Collection

from flash_llm_ros.engine.memory.read_estimate import estimated_reads
from flash_llm_ros.engine.memory.window_plan import plan_window
from flash_llm_ros.model_spec import ExpertsSpec
from flash_llm_ros.store.device_profile import ReadCosts
from flash_llm_ros.store.manifest import Manifest

_USUAL = 64
_CHUNKS = (_USUAL, 128, 256, 512)   # of equals the first
_SHORT = (32, 16)                   # where none of these fits: what is computed at once is slower
_PROMPT, _ANSWER = 512, 128     # tokens of the request that is weighed


def chosen_chunk(manifest: Manifest, grouped: Collection[str], slots_of: Callable[[int], int],
                 costs: ReadCosts | None, context: int) -> int:
    """Of models with experts: that with which a request's reads take least time; else 64.

    Every expert that a token of a chunk needs is read once a chunk, so longer ones read less; but
    what they are computed in is taken from the window, and tokens read more. `slots_of`: slots of
    the window by chunk, 0 where it does not fit. `costs`: of reads on this device; None: unknown.
    """
    experts, geometry = manifest.model.feed_forward.experts, manifest.geometry
    if experts is None:
        return _USUAL

    prompt = min(_PROMPT, context // 2)     # there is room for an answer

    def seconds(chunk: int) -> float:
        plan = plan_window(geometry, slots_of(chunk), grouped)
        one, whole = (estimated_reads(geometry, plan, costs, grouped, share).seconds
                      for share in (share_needed(experts, 1), share_needed(experts, chunk)))
        return -(-prompt // chunk) * whole + _ANSWER * one

    if fitting := [chunk for chunk in _CHUNKS if chunk <= max(prompt, _USUAL) and slots_of(chunk)]:
        return min(fitting, key=seconds)
    return next((chunk for chunk in _SHORT if slots_of(chunk)), _USUAL)


def share_needed(experts: ExpertsSpec, tokens: int) -> float:
    """Of a layer's experts, by so many tokens that choose independently of each other."""
    return 1 - (1 - experts.active / experts.count) ** tokens
