"""The neuron core, a C++ extension: how it is loaded, and what it needs beside its slab."""

from types import ModuleType
from typing import Any

from flash_llm_ros.model_spec import ModelSpec
from flash_llm_ros.store.codec import RowCodec
from flash_llm_ros.store.errors import ErrorCode, FlashLlmError
from flash_llm_ros.store.geometry import Geometry
from flash_llm_ros.store.manifest import FORMAT_VERSION

# The most bytes that a value of x takes as the kernels want it, its share of the block's included.
_PREPARED = {'int8': 3, 'int4': 2, 'fp16': 4, 'mxfp4': 2}


def core_scratch_bytes(geometry: Geometry, threads: int, tokens: int,
                       active_experts: int = 0) -> int:
    """The most that the native core allocates beside its slab, for up to ``tokens`` at once.

    ``active_experts``: of a token; 0 where there are no experts.
    """
    padded = -(-geometry.dim // 32) * 32
    codecs = {section.codec for section in geometry.sections}
    # Some rows unpacked, and their results.
    each_thread = max(_step_rows(codec) * (4 * codec.dim + 256) for codec in codecs) + 16384
    # Inputs as the kernels want them.
    prepared = (tokens + 3) * max(_PREPARED[codec.name] * codec.dim + 512 for codec in codecs)
    sums = 16 * 4 * padded
    batch = 8192 * 48 + 4 * 65536                           # addresses and activations
    experts = 0
    if active_experts:
        # Inputs and results of an expert's tokens, or the results of a token's experts; what the
        # neurons of one give; who uses which.
        neurons = geometry.all_layers('expert_down')[0].codec.dim
        experts = 4 * (geometry.dim * (tokens + max(tokens, active_experts)) + tokens * neurons)
        experts += 2 * 24 * tokens * active_experts + 4096
    return threads * each_thread + prepared + sums + batch + experts + geometry.group_bytes


def attention_shape(spec: ModelSpec, context: int, tokens: int, cache_type: str) -> Any:
    """The core's AttentionShape for so many tokens at once; cache_type: int8 or int16.

    Its rotations are that of most layers, and that of `spec.local` ones.

    Errors as `load_core_class`.
    """
    attention, positions = spec.attention, spec.positions
    rotations = [(spec.rotary_frequencies(context), positions.scale)]
    if positions.local_theta is not None:
        rotations.append((spec.rotary_frequencies(context, local=True), 1.0))
    return _extension().AttentionShape(
        attention.heads, attention.kv_heads, attention.head_dim, context, tokens,
        {'int8': 8, 'int16': 16}[cache_type], rotations, attention.soft_cap)


def _step_rows(codec: RowCodec) -> int:
    return min(max(32768 // codec.row_bytes // 32 * 32, 32), 512)


def bookkeeping_bytes(geometry: Geometry, cache_slots: int) -> int:
    """What the core allocates beside its slab to keep account of so many cache slots.

    Errors as `load_core_class`.
    """
    return _extension().bookkeeping_bytes(geometry.groups, cache_slots)


def plan_reads(groups: list[int], request_groups: float,
               largest_groups: int) -> list[tuple[int, int]]:
    """Spans [begin, end) of these ascending groups, each one request of the core.

    A request costs as much as `request_groups` more groups, and has at most `largest_groups`.
    Errors as `load_core_class`.
    """
    return _extension().plan_reads(groups, request_groups, largest_groups)


def load_core_class() -> type:
    """The class NeuronCore of ``flash_llm_ros._native``.

    ImportError, with a sentence, where the extension was not built; FlashLlmError (STORE_VERSION)
    where it was compiled for another version of the store's format.
    """
    return _extension().NeuronCore


def _extension() -> ModuleType:
    try:
        from flash_llm_ros import _native
    except ImportError as error:
        raise ImportError(
            f'the C++ core flash_llm_ros._native cannot be loaded ({error}); build it with a C++17 '
            'compiler: `make` in the source folder, or `pip install .`, or `colcon build`'
        ) from error
    _check_format(_native)
    return _native


def _check_format(extension: ModuleType) -> None:
    """One that was left over from before would read rows wrongly and answer NaN."""
    compiled = getattr(extension, 'STORE_FORMAT', 'one before 2')
    if compiled != FORMAT_VERSION:
        raise FlashLlmError(
            ErrorCode.STORE_VERSION,
            f'{extension.__file__} was compiled for store format {compiled}, this version needs '
            f'{FORMAT_VERSION}; build or install the package again.')
