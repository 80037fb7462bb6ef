"""What a pass and the choice of a token write to, beside the parts' own arrays."""

from flash_llm_ros.engine.memory.core import attention_shape, core_scratch_bytes
from flash_llm_ros.engine.plan import Part, PlanRow
from flash_llm_ros.store.manifest import Manifest

# Allocator, Python and code pages that tokens touch first; where a store has graphs also what ONNX
# Runtime allocates in passes. Peaks are then 0.3 MB below the budget, without graphs 4 MB
# (`python -m bench.memory.budget`).
_SLACK, _GRAPHS_SLACK = 2_000_000, 8_000_000


class Scratch(Part):
    """Arrays of the model, ONNX Runtime, the core and the sampler."""

    def __init__(self, manifest: Manifest, context: int, chunk: int, threads: int,
                 logits_rows: int) -> None:
        self._manifest, self._context, self._chunk = manifest, context, chunk
        self._threads, self._logits_rows = threads, logits_rows

    def buffers(self) -> list[PlanRow]:
        needed = scratch_bytes(self._manifest, self._context, self._chunk, self._threads,
                               self._logits_rows)
        model, calibration = self._manifest.model, self._manifest.calibration
        graphs = not model.core_attention or model.routed_layers or calibration is not None
        needed += _GRAPHS_SLACK if graphs else _SLACK
        return [PlanRow('scratch', needed, f'{self._chunk} prompt tokens at once')]


def scratch_bytes(manifest: Manifest, context: int, chunk: int, threads: int,
                  logits_rows: int) -> int:
    """What passes of a model write to; the arguments are those of `Scratch`."""
    spec = manifest.model
    # hidden x 2, FFN input, output where it is normed, activations; logits
    always = max(spec.feed_forward.always(layer) for layer in range(spec.layers))
    floats = chunk * ((3 + spec.norm.output) * spec.hidden_size + always)
    floats += spec.embedding.vocab_size * logits_rows
    # What sampling takes: scores, order, weights in 8 bytes each, and a mask
    sampling = spec.embedding.vocab_size * 7
    experts = spec.feed_forward.experts
    core = core_scratch_bytes(manifest.geometry, threads, chunk,
                              0 if experts is None else experts.active)
    if spec.core_attention:
        floats += chunk * spec.hidden_size + sampling
        if spec.convolution is not None:
            floats += (5 * chunk + spec.convolution.before) * spec.hidden_size
        core += attention_shape(spec, context, chunk, 'int8').scratch_bytes(spec.hidden_size,
                                                                            threads)
    else:
        # Before that, a layer's normed, attended, projected, qkv twice for the cast, scores
        floats += max(chunk * (3 * spec.hidden_size + 2 * spec.attention.qkv_width
                               + spec.attention.heads * context), sampling)
    return 4 * floats + core
