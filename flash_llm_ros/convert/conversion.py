"""Checkpoint to flash store: weights, then a short calibration, then one rename."""

from dataclasses import dataclass, replace
from pathlib import Path

from flash_llm_ros.calibrate.threshold_search import DEFAULT_SPARSITY
from flash_llm_ros.checkpoint.checkpoint import Checkpoint
from flash_llm_ros.checkpoint.open import open_checkpoint
from flash_llm_ros.convert.calibration import CalibrationOptions, calibrate_new
from flash_llm_ros.convert.calibration_text import default_text
from flash_llm_ros.convert.section_formats import INT4_LOSS, SectionFormats
from flash_llm_ros.engine import EngineConfig
from flash_llm_ros.engine.memory.device_probe import probe_folder
from flash_llm_ros.model_spec import ModelSpec
from flash_llm_ros.store import flash_store as names
from flash_llm_ros.store.block_quantisation import relative_error
from flash_llm_ros.store.codec import CODEC_NAMES
from flash_llm_ros.store.device_profile import DeviceProfile
from flash_llm_ros.store.flash_store import FlashStore
from flash_llm_ros.store.geometry import model_sections
from flash_llm_ros.store.group_size import best_min_group_bytes
from flash_llm_ros.store.manifest import KV_FORMATS, RESIDENT_FORMATS
from flash_llm_ros.store.predictor_graph import PredictorForm
from flash_llm_ros.store.writer import Progress, StoreFormat, StoreWriter

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
    int4_loss: float = INT4_LOSS    # nats a token that int4 may cost; inf: all is int4
    resident: str | None = None     # q8, q4 or fp32
    kv_cache: str | None = None     # fp16 or fp32
    block: int = 512                # bytes
    calibrate: bool = True
    ffn: Path | None = None         # feed-forward weights in place of the checkpoint's
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
        if not self.int4_loss >= 0:
            raise ValueError(f'int4_loss is {self.int4_loss}; it must be at least 0')
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
    checkpoint = open_checkpoint(source, options.ffn)
    exact = options.neurons == 'fp16'
    layout = 'bundled' if checkpoint.spec.feed_forward.sparse_by_nature else 'split'
    sections = SectionFormats(checkpoint, layout, options.neurons, options.int4_loss)
    form = StoreFormat(layout, sections.first,
                       options.resident or ('fp32' if exact else _resident(checkpoint)),
                       options.kv_cache or ('fp32' if exact else 'fp16'), options.block)
    profile = options.profile
    if options.probe:
        profile = probe_folder(target.parent, _PROBE_SECONDS, progress)
    if profile is not None:
        form = _for_device(form, checkpoint.spec, profile)
    text = default_text() if options.text is None else options.text
    with StoreWriter(checkpoint, target, form, progress) as writer:
        store = writer.write()
        if sections.undecided:
            codecs = sections.measured(store, text, progress)
            if codecs != sections.first:
                form = replace(form, codecs=codecs)
                store = writer.recode(form if profile is None
                                      else _for_device(form, checkpoint.spec, profile))
        if options.calibrate:
            writer.seal(calibrate_new(store, text, _short(checkpoint.spec, options), progress))
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
    sections = model_sections(form.layout, spec.layers, spec.feed_forward.size,
                              spec.embedding.vocab_size,
                              spec.embedding.tied, spec.feed_forward.gated)
    return replace(form, block=block, min_group_bytes=best_min_group_bytes(
        spec.hidden_size, form.codecs, sections, block, _ACTIVE_SHARE[form.layout],
        profile.costs(EngineConfig.reads_in_flight)))


def _short(spec: ModelSpec, options: ConversionOptions) -> CalibrationOptions:
    """A minute's work: every layer alike, nothing measured, no predictors to choose from.

    But in ReLU models, where they decide: there a sketch needs no more text than this.
    """
    rank = min(options.rank, -(-spec.hidden_size // _RANK_STEP) * _RANK_STEP)
    forms = [PredictorForm('low_rank', rank)]
    if spec.feed_forward.sparse_by_nature:
        forms.append(PredictorForm('sketch', 4))
    return CalibrationOptions(most_tokens=options.most_tokens, measured_tokens=0,
                              forms=tuple(forms))
