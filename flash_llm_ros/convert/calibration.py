"""Calibrates a flash store: recording, thresholds, predictors within a byte budget."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
import hashlib
import json
from pathlib import Path

import numpy as np

from flash_llm_ros.calibrate.threshold_search import FoundThresholds, ThresholdSearch
from flash_llm_ros.convert.calibration_text import generated_tokens, tokens_of
from flash_llm_ros.convert.predictor_search import PredictorSearch
from flash_llm_ros.convert.resumable_folder import ResumableFolder
from flash_llm_ros.convert.samples import Samples
from flash_llm_ros.convert.traces import record
from flash_llm_ros.engine import Engine, EngineConfig
from flash_llm_ros.engine.model.attention import kv_cache_bytes
from flash_llm_ros.store import flash_store as names
from flash_llm_ros.store.calibration_files import (
    discard_predictors,
    next_folder,
    publish_calibration,
    write_predictors,
)
from flash_llm_ros.store.flash_store import FlashStore
from flash_llm_ros.store.manifest import Calibration
from flash_llm_ros.store.predictor_graph import PredictorForm
from flash_llm_ros.store.writer import Progress

WORK_FOLDERS = ('results', 'generated')         # of `recalibrate`, in its folder
_CONTEXT = 512
_SPARE_BYTES = 256_000_000
_MOST_WINDOW = 768_000_000
# Of the FFN's bytes. Where predictors decide what is read, they save more reads than as much window
# would: sketches of int8 gate rows in 4 bits are a fifth.
_PREDICTOR_SHARE = {'split': 0.1, 'bundled': 0.25}


@dataclass(frozen=True)
class CalibrationOptions:
    """How much calibration may do; ValueError on creation."""

    most_tokens: int = 16384
    forms: tuple[PredictorForm, ...] = (PredictorForm('low_rank', 64),)
    predictor_bytes: int | None = None      # of all layers; None: 10 % of the FFN's bytes (25 %
                                            # in the bundled layout)
    measured_tokens: int = 1024             # read again and again; 0: nothing is measured
    most_loss: float = 0.02                 # of perplexity, surely, at the default sparsity
    threads: int = 1

    def __post_init__(self) -> None:
        for name, least in (('most_tokens', 1), ('measured_tokens', 0), ('threads', 1)):
            if (value := getattr(self, name)) < least:
                raise ValueError(f'{name} is {value}; it must be at least {least}')
        if not 0 < self.most_loss < 1:
            raise ValueError(f'most_loss is {self.most_loss}; it must be between 0 and 1')
        if self.predictor_bytes is not None and self.predictor_bytes < 1:
            raise ValueError(f'predictor_bytes is {self.predictor_bytes}; it must be at least 1')


@dataclass(frozen=True)
class CalibratedStore:
    """The store with its new calibration, and how that was found where it was measured."""

    store: FlashStore
    thresholds: FoundThresholds | None


def recalibrate(path: Path, texts: list[str] | None, folder: Path, options: CalibrationOptions,
                progress: Progress) -> CalibratedStore:
    """Give a finished store another calibration; None: on text that the model writes.

    The manifest is replaced in one step. What is done is kept in `folder` until then, so that an
    interrupted call goes on. Raises FlashLlmError, OSError and ValueError.
    """
    store = FlashStore.open(path)
    tokens = read_tokens(store, texts, folder, options, progress)
    predictors = next_folder(store)
    work = ResumableFolder(folder / 'results', _key(store, options, tokens))
    try:
        calibration, thresholds = _calibrate(store, tokens, work, predictors, options, progress)
        store = publish_calibration(store, calibration)
    except BaseException:
        if FlashStore.open(path).manifest.files == store.manifest.files:
            discard_predictors(store, predictors)
        raise
    return CalibratedStore(store, thresholds)


def calibrate_new(store: FlashStore, text: str, options: CalibrationOptions,
                  progress: Progress) -> Calibration:
    """The calibration of a store that is being written; its files are written to the store."""
    with opened(store, options) as engine:
        tokens = tokens_of(engine, [text], options.most_tokens)
    work = ResumableFolder(store.path / 'calibration', {})
    try:
        return _calibrate(store, tokens, work, names.FIRST_PREDICTORS, options, progress)[0]
    finally:
        work.remove()


def _calibrate(store: FlashStore, tokens: list[int], work: ResumableFolder, folder: str,
               options: CalibrationOptions, progress: Progress
               ) -> tuple[Calibration, FoundThresholds | None]:
    with opened(store, options) as engine:
        traces = record(engine, tokens, work.path / 'inputs',
                        lambda done, total: progress('reading text', done, total))
        samples = Samples(traces, np.array(tokens, np.int64), engine.config.context_length)
    thresholds = None
    if store.manifest.layout == 'split':
        thresholds = ThresholdSearch(store, samples, work, progress).find(
            lambda: opened(store, options), options.measured_tokens, options.most_loss)
    search = PredictorSearch(store, samples, work, options.forms, progress)
    found = search.find(thresholds, _predictor_budget(store, options))
    forms = [predictor.form for predictor in found]
    write_predictors(store, folder, forms, search.predictors(forms))
    calibration = Calibration(
        text_tokens=len(tokens),
        default_sparsity=(thresholds.default_sparsity if thresholds else
                          1 - sum(predictor.loaded for predictor in found) / len(found)),
        thresholds=thresholds.thresholds if thresholds else {},
        predictor_thresholds={key: [predictor.thresholds[key] for predictor in found]
                              for key in found[0].thresholds},
        predictors=[predictor.facts for predictor in found],
        layer_sparsity=thresholds.shares if thresholds else {},
        perplexity=thresholds.perplexity if thresholds else {},
        predictor_folder=folder, norm_exponent=0.0)
    return calibration, thresholds


def read_tokens(store: FlashStore, texts: list[str] | None, folder: Path,
                options: CalibrationOptions, progress: Progress) -> list[int]:
    """Of the texts, or of chats that the model writes and that are kept in `folder`."""
    with opened(store, options) as engine:
        if texts is not None:
            return tokens_of(engine, texts, options.most_tokens)
        kept = ResumableFolder(folder / 'generated', {'store': _fingerprint(store)})
        file = kept.path / 'chats.jsonl'
        chats = [json.loads(line) for line in _whole_lines(file)]
        with file.open('w', encoding='utf-8') as target:
            def keep(chat: list[int]) -> None:
                target.write(f'{json.dumps(chat)}\n')
                target.flush()
            for chat in chats:
                keep(chat)
            return generated_tokens(engine, options.most_tokens, chats, keep,
                                    lambda done, total: progress('writing text', done, total))


def _whole_lines(file: Path) -> list[str]:
    """Without one that an interruption cut off."""
    text = file.read_text('utf-8') if file.exists() else ''
    return text[:text.rfind('\n') + 1].splitlines()


@contextmanager
def opened(store: FlashStore, options: CalibrationOptions) -> Iterator[Engine]:
    engine = Engine.open(engine_config(store, options))
    try:
        yield engine
    finally:
        engine.close()


def engine_config(store: FlashStore, options: CalibrationOptions) -> EngineConfig:
    """Room for all weights of a small model, for a part of a large one's."""
    context = min(_CONTEXT, store.manifest.model.max_context)
    sizes = store.manifest.files
    window = min(sizes[names.NEURONS]['bytes'], _MOST_WINDOW)
    budget = (3 * sizes[names.RESIDENT]['bytes'] + 16 * sizes[names.TOKENIZER]['bytes']
              + kv_cache_bytes(store, context) + window + _SPARE_BYTES)
    return EngineConfig(store.path, budget, context_length=context, verify=False,
                        lock_memory=False, threads=options.threads)


def _predictor_budget(store: FlashStore, options: CalibrationOptions) -> int:
    if options.predictor_bytes is not None:
        return options.predictor_bytes
    geometry = store.manifest.geometry
    return int(_PREDICTOR_SHARE[store.manifest.layout] * sum(section.groups * geometry.group_bytes
                                      for section in geometry.sections if section.layer >= 0))


def _key(store: FlashStore, options: CalibrationOptions, tokens: list[int]) -> dict[str, object]:
    """What intermediate results depend on; the budget only decides among them."""
    digest = hashlib.sha256(np.array(tokens, np.int64).tobytes()).hexdigest()
    return {'store': _fingerprint(store), 'tokens': digest,
            'forms': [vars(form) for form in options.forms],
            'measured_tokens': options.measured_tokens}


def _fingerprint(store: FlashStore) -> str:
    return store.manifest.files[names.NEURONS]['sha256']
