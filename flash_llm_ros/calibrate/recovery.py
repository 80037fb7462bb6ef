"""Learns corrections for what a store's modes leave out, by self-distillation; needs torch.

The store in exact mode is the teacher. Only a low-rank map of each block's input is trained, which
costs a token next to nothing: the weights on flash stay as they are.
"""

from collections.abc import Callable
from dataclasses import dataclass
import hashlib
import math
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from flash_llm_ros.calibrate.corrected_blocks import CorrectedBlocks, LeadingBlocks, SparseBlocks
from flash_llm_ros.calibrate.distillation import SiluBlocks
from flash_llm_ros.calibrate.self_distillation import SelfDistillation
from flash_llm_ros.calibrate.store_tensors import StoreTensors
from flash_llm_ros.calibrate.tail_correction import LowRankMap
from flash_llm_ros.calibrate.threshold_search import activation_limits, down_norms
from flash_llm_ros.calibrate.torch_model import MATRIX, GatedWeights, TorchModel, gated_weights
from flash_llm_ros.convert.calibration import CalibrationOptions, read_tokens
from flash_llm_ros.convert.perplexity_growth import Growth
from flash_llm_ros.convert.resumable_folder import ResumableFolder
from flash_llm_ros.engine.memory.process_memory import keep_large_blocks
from flash_llm_ros.store import flash_store as names
from flash_llm_ros.store.aggressive import CORRECTIONS
from flash_llm_ros.store.flash_store import CorrectionPlace, FlashStore
from flash_llm_ros.store.recovery import RecoveredSetting, correction_names, setting_name
from flash_llm_ros.store.recovery_files import Found, publish_recovery
from flash_llm_ros.store.tensor_file import TensorFile
from flash_llm_ros.store.writer import Progress

WORK_FOLDERS = ('training', 'generated')         # of `recover`, in its folder
_HELD_OUT = 8                   # every eighth piece at most
_SEED = 0
_USUAL = (0.7,)


@dataclass(frozen=True)
class RecoveryOptions:
    """What is learned; ValueError on creation."""

    sparsities: tuple[float, ...] | None = None     # None: 0.7 where the store is calibrated
    shares: tuple[float, ...] | None = None         # None: all that the store is prepared for
    rank: int = 16                  # of new corrections; resident: 2 * rank * d floats a layer
    most_tokens: int = 65536        # of text
    measured_tokens: int = 4096     # of these
    length: int = 512               # tokens of a piece
    learning_rate: float = 5e-4
    threads: int = 1                # that write text, where there is none

    def __post_init__(self) -> None:
        for name, least in (('rank', 1), ('measured_tokens', 2), ('length', 3), ('threads', 1)):
            if (value := getattr(self, name)) < least:
                raise ValueError(f'{name} is {value}; it must be at least {least}')
        if self.most_tokens < (least := _HELD_OUT * self.length):
            raise ValueError(f'most_tokens is {self.most_tokens}; it must be at least {least}, '
                             f'{_HELD_OUT} pieces of length {self.length}')
        if any(not 0 < sparsity < 1 or abs(sparsity - float(setting_name(sparsity))) > 1e-6
               for sparsity in self.sparsities or ()):
            raise ValueError(f'sparsities are {self.sparsities}; each must be between 0 and 1, '
                             'with at most two decimals')
        if not (math.isfinite(self.learning_rate) and self.learning_rate > 0):
            raise ValueError(f'learning_rate is {self.learning_rate}; it must be positive')


@dataclass(frozen=True)
class Outcome:
    """What training one setting brought; what is not better than before is not `kept`."""

    mode: str
    name: str                   # of the sparsity, or of the share of the neurons
    setting: RecoveredSetting
    kept: bool


def recover(path: Path, texts: list[str] | None, folder: Path, options: RecoveryOptions,
            progress: Progress) -> tuple[FlashStore, list[Outcome]]:
    """Give a finished store corrections that were trained; None: on text that the model writes.

    The manifest is replaced in one step, at the end. What is done is kept in `folder` until then,
    so that an interrupted call goes on. Raises FlashLlmError, OSError and ValueError.
    """
    store = FlashStore.open(path)
    settings = _settings(store, options)
    reading = CalibrationOptions(most_tokens=options.most_tokens, threads=options.threads)
    tokens = np.array(read_tokens(store, texts, folder, reading, progress), np.int64)
    keep_large_blocks()         # the engine that read the text gave them back
    text, held_out = _pieces(tokens, options)
    work = ResumableFolder(folder / 'training', _key(store, tokens, options))
    training, weights = _training(store, text, held_out, options, progress)
    exact = training.losses(None)
    found: dict[str, Found] = {'sparse': {}, 'aggressive': {}}
    outcomes = []
    for mode, name in settings:
        blocks = _blocks(store, mode, name, weights, options.rank)
        before = Growth.of(training.losses(blocks), exact)
        training.train(blocks, options.learning_rate, work.path / f'{mode}-{name}.pt',
                       _named(progress, f'{mode} {name}'))
        after = Growth.of(training.losses(blocks), exact)
        setting = RecoveredSetting(*(round(value, 4) for value in (
            before.relative, after.relative, after.relative_error)), len(exact))
        outcomes.append(Outcome(mode, name, setting, after.nats < before.nats))
        if outcomes[-1].kept:
            found[mode][name] = setting, blocks.corrections()
    return publish_recovery(store, found['sparse'], found['aggressive']), outcomes


def _settings(store: FlashStore, options: RecoveryOptions) -> list[tuple[str, str]]:
    """Modes and names; ValueError where there is nothing to do, or one is not possible."""
    calibration, aggressive = store.manifest.calibration, store.manifest.aggressive
    if store.manifest.layout != 'split':
        raise ValueError(f'{store.path} has the {store.manifest.layout} layout: its predictors '
                         'leave out next to nothing that is not 0')
    found = []
    if calibration is not None:
        most = max(map(float, calibration.thresholds))
        for sparsity in _USUAL if options.sparsities is None else options.sparsities:
            if sparsity > most:
                raise ValueError(f'sparsity is {sparsity}; this store is calibrated for at most '
                                 f'{most:g}')
            found.append(('sparse', setting_name(sparsity)))
    elif options.sparsities:
        raise ValueError(f'{store.path} is not calibrated; use `flash_llm calibrate`')
    if aggressive is not None:
        shares = (tuple(map(float, aggressive.shares)) if options.shares is None
                  else options.shares)
        found += [('aggressive', aggressive.setting(share)[0]) for share in shares if share < 1]
    elif options.shares:
        raise ValueError(f'{store.path} is not prepared for mode aggressive; use `flash_llm order`')
    if not found:
        raise ValueError(f'{store.path} has no mode that leaves anything out; use `flash_llm '
                         'calibrate` or `flash_llm order`, and name a sparsity or a share')
    return found


def _pieces(tokens: NDArray[np.int64], options: RecoveryOptions
            ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """To train on, in random order, and to measure on; int64 [pieces, length]."""
    count = len(tokens) // options.length
    if count < _HELD_OUT:
        raise ValueError(f'the text has {len(tokens)} tokens; it must have at least '
                         f'{_HELD_OUT * options.length}, {_HELD_OUT} pieces')
    pieces = tokens[:count * options.length].reshape(count, options.length)
    measured = np.arange(count) % _HELD_OUT == _HELD_OUT - 1
    most = max(1, options.measured_tokens // options.length)
    places = np.flatnonzero(measured)
    places = places[np.linspace(0, len(places) - 1, min(most, len(places))).astype(np.int64)]
    return np.random.default_rng(_SEED).permutation(pieces[~measured]), pieces[places]


def _training(store: FlashStore, text: NDArray[np.int64], held_out: NDArray[np.int64],
              options: RecoveryOptions, progress: Progress
              ) -> tuple[SelfDistillation, list[GatedWeights]]:
    tensors, weights = StoreTensors(store), []
    for layer in range(tensors.spec.layers):
        weights.append(gated_weights(tensors, layer, MATRIX))
        progress('loading weights', layer + 1, tensors.spec.layers)
    model = TorchModel(tensors, options.length)
    return SelfDistillation(model, SiluBlocks(weights), text, held_out), weights


def _blocks(store: FlashStore, mode: str, name: str, weights: list[GatedWeights],
            rank: int) -> CorrectedBlocks:
    """With the corrections that the store has, or such that add nothing yet."""
    spec = store.manifest.model
    if mode == 'aggressive':
        start = _stored(store, store.leading_corrections(name))
        return LeadingBlocks(weights, start, store.manifest.aggressive.shares[name].widths)
    place = store.sparse_corrections(float(name))
    start = _stored(store, place) if place else _nothing(spec.layers, spec.hidden_size, rank)
    limits = activation_limits(store.manifest.calibration, float(name), down_norms(store))
    return SparseBlocks(weights, start, limits)


def _stored(store: FlashStore, place: CorrectionPlace) -> list[LowRankMap]:
    with TensorFile(store.path / place.file) as tensors:
        return [LowRankMap(*map(tensors.read, correction_names(place.prefix, layer)))
                for layer in range(store.manifest.model.layers)]


def _nothing(layers: int, width: int, rank: int) -> list[LowRankMap]:
    """Random orthonormal directions whose outer factors are 0."""
    generator = np.random.default_rng(_SEED)
    rank = min(rank, width)
    return [LowRankMap(np.ascontiguousarray(np.linalg.qr(
                           generator.standard_normal((width, rank)))[0].T, np.float32),
                       np.zeros((width, rank), np.float32), np.zeros(width, np.float32))
            for _ in range(layers)]


def _named(progress: Progress, what: str) -> Callable[[int, int], None]:
    return lambda done, total: progress(what, done, total)


def _key(store: FlashStore, tokens: NDArray[np.int64],
         options: RecoveryOptions) -> dict[str, object]:
    """What training depends on."""
    manifest, calibration = store.manifest, store.manifest.calibration
    return {'neurons': manifest.files[names.NEURONS]['sha256'],
            'tokens': hashlib.sha256(tokens.tobytes()).hexdigest(),
            'thresholds': calibration and calibration.thresholds,
            'corrections': manifest.recovery and manifest.files[manifest.recovery.file]['sha256'],
            'aggressive': manifest.aggressive and manifest.files[CORRECTIONS]['sha256'],
            **{name: getattr(options, name) for name in ('rank', 'length', 'learning_rate')}}
