"""Checkpoint to flash store: weights, then a short calibration, then one rename."""

from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
import shutil

from flash_llm_ros.calibrate.layer_calibration import (
    FfnWeights,
    LayerCalibration,
    calibrate_bundled,
    calibrate_split,
)
from flash_llm_ros.calibrate.traces import TraceRecorder, record
from flash_llm_ros.checkpoint.checkpoint import Checkpoint, open_checkpoint
from flash_llm_ros.engine import Engine, EngineConfig
from flash_llm_ros.engine.attention import kv_cache_bytes
from flash_llm_ros.engine.device_probe import probe_folder
from flash_llm_ros.model_spec import ModelSpec
from flash_llm_ros.store import flash_store as names
from flash_llm_ros.store.block_quantisation import relative_error
from flash_llm_ros.store.codec import CODEC_NAMES
from flash_llm_ros.store.device_profile import DeviceProfile
from flash_llm_ros.store.flash_store import FlashStore
from flash_llm_ros.store.geometry import model_sections
from flash_llm_ros.store.group_size import best_min_group_bytes
from flash_llm_ros.store.layer_graphs import ExternalData
from flash_llm_ros.store.manifest import KV_FORMATS, RESIDENT_FORMATS, Calibration
from flash_llm_ros.store.predictor_graph import RESIDENT, predictor_graph, predictor_layout
from flash_llm_ros.store.resident_layout import matrix_tensors
from flash_llm_ros.store.tensor_file import TensorFileWriter
from flash_llm_ros.store.writer import Progress, StoreFormat, StoreWriter

DEFAULT_SPARSITY = 0.5
_CONTEXT = 512
_SPARE_BYTES = 256_000_000
# Squared error relative to the matrix: 4-bit sources stay below 1e-5, unrounded ones reach 3e-3.
_Q4_ERROR = 1e-4
_PROBE_SECONDS = 8.0
# Expected before calibration: neurons that sparse mode uses of a layer.
_ACTIVE_SHARE = {'split': 1 - DEFAULT_SPARSITY, 'bundled': 0.1}
_RANK_STEP = 64                     # whole blocks of the 8-bit factors


@dataclass(frozen=True)
class ConversionOptions:
    """What the user may choose; None means: by the neurons' format. ValueError on creation."""

    neurons: str = 'int8'           # int8, int4 or fp16
    resident: str | None = None     # q8, q4 or fp32
    kv_cache: str | None = None     # fp16 or fp32
    block: int = 512                # bytes
    calibrate: bool = True
    text: str | None = None         # calibration text; None: the package's own
    most_tokens: int = 2048
    rank: int = 64
    replace: bool = False
    profile: DeviceProfile | None = None    # of the device that the store will be on
    probe: bool = False             # measure the profile, on the device that the store is put on

    def __post_init__(self) -> None:
        for name, known in (('neurons', CODEC_NAMES), ('resident', (None, *RESIDENT_FORMATS)),
                            ('kv_cache', (None, *KV_FORMATS))):
            if (value := getattr(self, name)) not in known:
                raise ValueError(f'{name} is {value!r}; it must be one of '
                                 f'{", ".join(filter(None, known))}')
        if self.probe and self.profile is not None:
            raise ValueError('probe and profile exclude each other; give one of them.')
        if self.rank < 1:
            raise ValueError(f'rank is {self.rank}; it must be at least 1')


def convert(source: str | Path, target: str | Path, options: ConversionOptions,
            progress: Progress) -> FlashStore:
    """Write a flash store. Nothing is left behind, and nothing replaced, when it fails.

    Raises CheckpointError, FlashLlmError, FileExistsError and ValueError.
    """
    target = Path(target)
    if target.exists() and not options.replace:
        raise FileExistsError(f'{target} exists; give another name, or --replace.')
    if target.exists() and not (target / names.MANIFEST).is_file():
        raise FileExistsError(f'{target} exists and is no flash store; it is not replaced.')
    checkpoint = open_checkpoint(source)
    exact = options.neurons == 'fp16'
    form = StoreFormat('bundled' if checkpoint.spec.sparse_by_nature else 'split',
                       options.neurons,
                       options.resident or ('fp32' if exact else _resident(checkpoint)),
                       options.kv_cache or ('fp32' if exact else 'fp16'), options.block)
    profile = options.profile
    if options.probe:
        profile = probe_folder(target.parent, _PROBE_SECONDS, progress)
    if profile is not None:
        form = _for_device(form, checkpoint.spec, profile)
    with StoreWriter(checkpoint, target, form, progress) as writer:
        store = writer.write()
        if options.calibrate:
            writer.seal(_calibrate(checkpoint, store, options, progress))
        if profile is not None:
            writer.add_profile(profile)
        writer.publish()
    return FlashStore.open(target)


def _resident(checkpoint: Checkpoint) -> str:
    """4 bits where the source has no more to keep, 8 bits otherwise; three layers tell."""
    last = checkpoint.spec.layers - 1
    error = max(relative_error(checkpoint.rows(f'layers.{layer}.{part}'), 'q4')
                for layer in sorted({0, last // 2, last}) for part in 'qo')
    return 'q4' if error < _Q4_ERROR else 'q8'


def _for_device(form: StoreFormat, spec: ModelSpec, profile: DeviceProfile) -> StoreFormat:
    """The same format in blocks that the device reads directly and groups that suit it."""
    block = max(form.block, profile.sizes[0])
    sections = model_sections(form.layout, spec.layers, spec.ffn_size, spec.vocab_size,
                              spec.tied_embeddings)
    return replace(form, block=block, min_group_bytes=best_min_group_bytes(
        spec.hidden_size, form.codec, sections, block, _ACTIVE_SHARE[form.layout],
        profile.costs(EngineConfig.reads_in_flight)))


def _calibrate(checkpoint: Checkpoint, store: FlashStore, options: ConversionOptions,
               progress: Progress) -> Calibration:
    text = options.text
    if text is None:
        text = files(__package__).joinpath('default_text.txt').read_text('utf-8')
    folder = store.path / 'traces'
    engine = Engine.open(_engine_config(store))
    try:
        recorder = record(engine, text, folder, options.most_tokens,
                          lambda done, total: progress('reading text', done, total))
    finally:
        engine.close()
    try:
        return _calibrate_layers(checkpoint, store, recorder, options, progress)
    finally:
        shutil.rmtree(folder)


def _engine_config(store: FlashStore) -> EngineConfig:
    """Room for a part of the weights, whatever the model's size."""
    context = min(_CONTEXT, store.manifest.model.max_context)
    sizes = store.manifest.files
    budget = (3 * sizes[names.RESIDENT]['bytes'] + 16 * sizes[names.TOKENIZER]['bytes']
              + kv_cache_bytes(store, context) + _SPARE_BYTES)
    return EngineConfig(store.path, budget, context_length=context, verify=False,
                        lock_memory=False)


def _calibrate_layers(checkpoint: Checkpoint, store: FlashStore, recorder: TraceRecorder,
                      options: ConversionOptions, progress: Progress) -> Calibration:
    spec, layout = checkpoint.spec, store.manifest.layout
    rank = min(options.rank, -(-spec.hidden_size // _RANK_STEP) * _RANK_STEP)
    tensors = predictor_layout(spec, layout, rank)
    writer = TensorFileWriter(store.path / names.PREDICTORS, tensors)
    data = ExternalData(names.PREDICTORS, tensors, writer.offsets)
    layers: list[LayerCalibration] = []
    for layer in range(spec.layers):
        weights, x = FfnWeights(checkpoint, layer), recorder.read(layer)
        found = (calibrate_bundled(weights, x, rank) if layout == 'bundled'
                 else calibrate_split(weights, x, rank, DEFAULT_SPARSITY))
        for part in ('inner', 'outer'):
            name = f'predictors.{layer}.{part}'
            for key, tensor in matrix_tensors(name, getattr(found, part), RESIDENT).items():
                writer.write(key, tensor)
        if layout == 'split':
            writer.write(f'predictors.{layer}.down_norm', found.down_norm)
        graph = predictor_graph(spec, layout, layer, rank, data)
        (store.path / names.predictor_graph(layer)).write_bytes(graph)
        layers.append(found)
        progress('calibrating', layer + 1, spec.layers)
    writer.close()
    return Calibration(
        text_tokens=len(x), predictor_rank=rank,
        default_sparsity=sum(found.sparsity for found in layers) / len(layers),
        thresholds=_by_sparsity([found.thresholds for found in layers]),
        predictor_thresholds=_by_sparsity([found.predictor_thresholds for found in layers]),
        predictor_recall=[round(found.recall, 4) for found in layers],
        predictor_precision=[round(found.precision, 4) for found in layers])


def _by_sparsity(layers: list[dict[str, float]]) -> dict[str, list[float]]:
    return {key: [layer[key] for layer in layers] for key in layers[0]}
