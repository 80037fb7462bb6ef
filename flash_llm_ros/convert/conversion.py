"""Checkpoint to flash store: weights, then predictors where they may decide, then its name."""

from collections.abc import Callable
from dataclasses import replace
import os
from pathlib import Path

from flash_llm_ros.checkpoint.checkpoint import Checkpoint
from flash_llm_ros.checkpoint.open import open_checkpoint
from flash_llm_ros.convert.calibration import CalibrationOptions, calibrate_new
from flash_llm_ros.convert.calibration_text import default_text, rounding_text
from flash_llm_ros.convert.forecast import Forecast
from flash_llm_ros.convert.foresight import measure_foresight
from flash_llm_ros.convert.options import ConversionOptions
from flash_llm_ros.convert.section_rounding import SectionRounding
from flash_llm_ros.convert.trial_conversation import conversation_doubts
from flash_llm_ros.store import flash_store as names
from flash_llm_ros.store.flash_store import FlashStore
from flash_llm_ros.store.publication import restore
from flash_llm_ros.store.writer import Progress, StoreWriter


def convert(source: str | Path | Checkpoint, target: str | Path, options: ConversionOptions,
            progress: Progress, warn: Callable[[str], None] = lambda sentence: None) -> FlashStore:
    """Write a flash store. Nothing is left behind, and nothing replaced, when it fails.

    What may not be as it is wanted is told by `warn`, before the work begins. Raises
    CheckpointError, FlashLlmError, OSError and ValueError.
    """
    target = Path(os.path.realpath(target))     # `.` would be the folder that was replaced
    restore(target)
    if target.exists() and not options.replace:
        raise FileExistsError(f'{target} exists; give another name, or --replace.')
    if target.exists() and not (target / names.MANIFEST).is_file():
        raise FileExistsError(f'{target} exists and is no flash store; it is not replaced.')
    checkpoint = (source if isinstance(source, Checkpoint) else
                  open_checkpoint(source, options.ffn))
    for doubt in (*checkpoint.doubts, *conversation_doubts(checkpoint)):
        warn(f'{checkpoint.path}: {doubt}')
    forecast = Forecast(checkpoint, options)
    forecast.check_disk(target)
    form, sections = forecast.form, forecast.sections
    texts = [default_text()] if options.texts is None else options.texts
    with StoreWriter(checkpoint, target, form, progress, options.replace) as writer:
        store = writer.write()
        if sections.candidates:
            with SectionRounding(checkpoint, store, sections, progress) as rounding:
                codecs, rounded = rounding.run([rounding_text()] if options.texts is None
                                               else texts)
                store = writer.recode(replace(form, codecs=codecs), rounded)
        if options.calibrate and checkpoint.spec.feed_forward.sparse_by_nature:
            chosen = CalibrationOptions(most_tokens=options.most_tokens)
            writer.seal(calibrate_new(writer, texts, chosen, progress))
        if options.calibrate and checkpoint.spec.feed_forward.experts is not None:
            writer.seal(None, measure_foresight(store, texts))
        writer.publish()
    return FlashStore.open(target)
