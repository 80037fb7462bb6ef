"""Calibrates a bundled store: recording, order of neurons, predictors, and what they cost."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
import os
from pathlib import Path
import shutil

from flash_llm_ros.checked_fields import check, check_integers
from flash_llm_ros.convert.calibration_text import tokens_of
from flash_llm_ros.convert.neuron_order import frequency_orders
from flash_llm_ros.convert.predictor_search import (
    FORMS,
    find_predictors,
    least_bytes,
    made_again,
)
from flash_llm_ros.convert.price import gated_price
from flash_llm_ros.convert.recording import record
from flash_llm_ros.convert.samples import Samples
from flash_llm_ros.engine import Engine, EngineConfig
from flash_llm_ros.store import flash_store as names
from flash_llm_ros.store.calibration_files import (
    discard_predictors,
    next_folder,
    publish_calibration,
    write_predictors,
)
from flash_llm_ros.store.errors import ErrorCode, FlashLlmError
from flash_llm_ros.store.flash_store import FlashStore
from flash_llm_ros.store.manifest import Calibration
from flash_llm_ros.store.predictor_form import PredictorForm
from flash_llm_ros.store.publication import locked
from flash_llm_ros.store.writer import Progress, StoreWriter

_CONTEXT = 512
_SPARE_BYTES = 256_000_000
_MOST_WINDOW = 768_000_000
# Of the FFN's bytes: predictors save more reads than as much window would, and sketches of int8
# gate rows in 4 bits are a fifth.
_PREDICTOR_SHARE = 0.25


@dataclass(frozen=True)
class CalibrationOptions:
    """How much calibration may do; FieldError on creation."""

    most_tokens: int = 4096                 # of text
    measured_tokens: int = 1024             # of those held out, that the price is measured on
    predictor_bytes: int | None = None      # of all layers; None: a quarter of the FFN's bytes
    forms: tuple[PredictorForm, ...] = FORMS
    threads: int = 1

    def __post_init__(self) -> None:
        check_integers(self, ['most_tokens', 'measured_tokens', 'threads'])
        if self.predictor_bytes is not None:
            check_integers(self, ['predictor_bytes'])


def recalibrate(path: Path, texts: list[str], options: CalibrationOptions,
                progress: Progress) -> FlashStore:
    """Give a finished store other predictors; its neurons stay where they are.

    The manifest is replaced in one step. Raises FlashLlmError, OSError and ValueError;
    FileExistsError where another process writes to the store.
    """
    FlashStore.open(path)       # which says what is wrong with what is no store
    if not os.access(path, os.W_OK):
        raise FlashLlmError(ErrorCode.INVALID_PARAMETER,
                            f'{path} cannot be written, and new predictors are files in it; '
                            'calibrate a copy that can be.')
    with locked(path):
        return _recalibrated(FlashStore.open(path), texts, options, progress)


def _recalibrated(store: FlashStore, texts: list[str], options: CalibrationOptions,
                  progress: Progress) -> FlashStore:
    block = store.manifest.model.feed_forward
    if not block.sparse_by_nature:
        raise FlashLlmError(
            ErrorCode.INVALID_PARAMETER,
            f'{store.path} is of a model with {block.activation}: every token of such a model '
            'needs all neurons, which mode exact reads. There is nothing to calibrate.')
    if options.predictor_bytes is not None:
        least = least_bytes(store.manifest.model, options.forms)
        check(options.predictor_bytes >= least, 'predictor_bytes', options.predictor_bytes,
              f'at least {least}, for a predictor in each of {store.manifest.model.layers} layers')
    folder = next_folder(store)
    try:
        with _recorded(store, texts, folder, options, progress) as samples:
            calibration = _calibrated(store, samples, folder, options, progress)
        return publish_calibration(store, calibration)
    except BaseException:
        if FlashStore.open(store.path).manifest.files == store.manifest.files:
            discard_predictors(store, folder)
        raise


def calibrate_new(writer: StoreWriter, texts: list[str], options: CalibrationOptions,
                  progress: Progress) -> Calibration:
    """Of a store that is being written: its neurons are put in order, too."""
    folder, store = names.FIRST_PREDICTORS, FlashStore.open(writer.path)
    with _recorded(store, texts, folder, options, progress) as samples:
        store = writer.reorder(frequency_orders(store, samples, progress))
        return _calibrated(store, samples, folder, options, progress)


@contextmanager
def _recorded(store: FlashStore, texts: list[str], folder: str, options: CalibrationOptions,
              progress: Progress) -> Iterator[Samples]:
    """A recording that lies where the predictors will, so that it goes with them if all fails."""
    place = store.path / folder / names.RECORDING
    try:
        with opened(store, options.threads) as engine:
            tokens = tokens_of(engine, texts, options.most_tokens)
            bundles = [('bundle', layer) for layer in range(store.manifest.model.layers)]
            recording = record(engine, tokens, bundles, place,
                               lambda done, total: progress('reading text', done, total))
            samples = Samples(recording, tokens, engine.config.context_length)
        yield samples
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _calibrated(store: FlashStore, samples: Samples, folder: str, options: CalibrationOptions,
                progress: Progress) -> Calibration:
    geometry = store.manifest.geometry
    weights = sum(section.groups for section in geometry.sections if section.layer >= 0)
    budget = options.predictor_bytes or int(_PREDICTOR_SHARE * weights * geometry.group_bytes)
    found = find_predictors(store, samples, options.forms, budget, progress)
    write_predictors(store, folder, [one.form for one in found],
                     made_again(store, samples, found))
    unpriced = Calibration(
        text_tokens=len(samples.tokens), thresholds=[one.quality.threshold for one in found],
        predictors=[one.facts for one in found], active_share=1.0, groups_share=1.0,
        perplexity_ratio=1.0, perplexity_error=0.0, predictor_folder=folder)
    calibrated = FlashStore(store.path, replace(store.manifest, calibration=unpriced))
    with opened(store, options.threads) as engine:
        price = gated_price(engine, calibrated, samples.held_out_pieces(options.measured_tokens),
                            progress)
    return replace(unpriced, active_share=round(price.active_share, 4),
                   groups_share=round(price.groups_share, 4),
                   perplexity_ratio=round(price.growth.relative, 4),
                   perplexity_error=round(price.growth.relative_error, 4))


@contextmanager
def opened(store: FlashStore, threads: int = 1) -> Iterator[Engine]:
    """In exact mode, with room for all weights of a small model, for a part of a large one's."""
    spec = store.manifest.model
    context = min(_CONTEXT, spec.max_context)
    sizes = store.manifest.files
    window = min(sizes[names.NEURONS]['bytes'], _MOST_WINDOW)
    budget = (3 * sizes[names.RESIDENT]['bytes'] + 16 * sizes[names.TOKENIZER]['bytes']
              + 4 * sum(map(spec.cached_width, range(spec.layers))) * context + window
              + _SPARE_BYTES)
    engine = Engine.open(EngineConfig(store.path, budget, mode='exact', context_length=context,
                                      kv_cache='int16', verify=False, lock_memory=False,
                                      threads=threads))
    try:
        yield engine
    finally:
        engine.close()
