"""Checkpoint to flash store: weights, then predictors where they may decide, then its name."""

from dataclasses import dataclass, replace
import os
from pathlib import Path

from flash_llm_ros.checked_fields import check, check_choice, check_integers
from flash_llm_ros.checkpoint.checkpoint import Checkpoint
from flash_llm_ros.checkpoint.open import open_checkpoint
from flash_llm_ros.convert.calibration import CalibrationOptions, calibrate_new
from flash_llm_ros.convert.calibration_text import default_text
from flash_llm_ros.convert.section_formats import INT4_LOSS, SectionFormats
from flash_llm_ros.store import flash_store as names
from flash_llm_ros.store.block_quantisation import relative_error
from flash_llm_ros.store.codec import CODEC_NAMES
from flash_llm_ros.store.flash_store import FlashStore
from flash_llm_ros.store.manifest import KV_FORMATS, RESIDENT_FORMATS
from flash_llm_ros.store.publication import restore
from flash_llm_ros.store.writer import Progress, StoreFormat, StoreWriter

# Squared error relative to the matrix: 4-bit sources stay below 1e-5, unrounded ones reach 3e-3.
_Q4_ERROR = 1e-4


@dataclass(frozen=True)
class ConversionOptions:
    """What the user may choose; None means: by the neurons' format. ValueError on creation."""

    neurons: str = 'int8'           # int8, int4 or fp16
    int4_loss: float = INT4_LOSS    # nats a token that int4 may cost; inf: all is int4
    resident: str | None = None     # q8, q4 or fp32
    kv_cache: str | None = None     # fp16 or fp32
    block: int = 512                # bytes
    calibrate: bool = True          # a model that is sparse by nature
    ffn: Path | None = None         # feed-forward weights in place of the checkpoint's
    texts: list[str] | None = None  # to calibrate on; None: the package's own
    most_tokens: int = CalibrationOptions.most_tokens     # of them
    replace: bool = False

    def __post_init__(self) -> None:
        for name, known in (('neurons', CODEC_NAMES), ('resident', RESIDENT_FORMATS),
                            ('kv_cache', KV_FORMATS)):
            if getattr(self, name) is not None:
                check_choice(self, name, known)
        check(self.int4_loss >= 0, 'int4_loss', self.int4_loss, 'at least 0')
        check_integers(self, ['block', 'most_tokens'])


def convert(source: str | Path, target: str | Path, options: ConversionOptions,
            progress: Progress) -> FlashStore:
    """Write a flash store. Nothing is left behind, and nothing replaced, when it fails.

    Raises CheckpointError, FlashLlmError, FileExistsError and ValueError.
    """
    target = Path(os.path.realpath(target))     # `.` would be the folder that was replaced
    restore(target)
    if target.exists() and not options.replace:
        raise FileExistsError(f'{target} exists; give another name, or --replace.')
    if target.exists() and not (target / names.MANIFEST).is_file():
        raise FileExistsError(f'{target} exists and is no flash store; it is not replaced.')
    checkpoint = open_checkpoint(source, options.ffn)
    exact = options.neurons == 'fp16'
    block = checkpoint.spec.feed_forward
    layout = 'bundled' if block.sparse_by_nature or not block.gated else 'split'
    sections = SectionFormats(checkpoint, layout, options.neurons, options.int4_loss)
    form = StoreFormat(layout, sections.first,
                       options.resident or ('fp32' if exact else _resident(checkpoint)),
                       options.kv_cache or ('fp32' if exact else 'fp16'), options.block)
    texts = [default_text()] if options.texts is None else options.texts
    with StoreWriter(checkpoint, target, form, progress, options.replace) as writer:
        store = writer.write()
        if sections.undecided:
            codecs = sections.measured(store, texts, progress)
            if codecs != sections.first:
                writer.recode(replace(form, codecs=codecs))
        if options.calibrate and block.sparse_by_nature:
            chosen = CalibrationOptions(most_tokens=options.most_tokens)
            writer.seal(calibrate_new(writer, texts, chosen, progress))
        writer.publish()
    return FlashStore.open(target)


def _resident(checkpoint: Checkpoint) -> str:
    """4 bits where the source has no more to keep, 8 bits otherwise; three layers tell."""
    last = checkpoint.spec.layers - 1
    error = max(relative_error(checkpoint.rows(f'layers.{layer}.{part}'), 'q4')
                for layer in sorted({0, last // 2, last}) for part in 'qo')
    return 'q4' if error < _Q4_ERROR else 'q8'
