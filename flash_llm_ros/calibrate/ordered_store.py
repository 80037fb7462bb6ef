"""Writes a store whose neurons lie in another order.

Of gated-SiLU models in that of their contribution, with what mode aggressive needs; of ReLU models
in that of their activity, so that what a token needs lies closer together.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
import os
from pathlib import Path
import shutil

import numpy as np
from numpy.typing import NDArray

from flash_llm_ros.calibrate.head_factors import head_factors
from flash_llm_ros.calibrate.leading_layers import LEFT_OUT, LeadingLayer, leading_layer
from flash_llm_ros.calibrate.residual_meter import ResidualMeter
from flash_llm_ros.calibrate.share_allocation import allocate
from flash_llm_ros.calibrate.tail_correction import LowRankMap
from flash_llm_ros.convert.calibration import CalibrationOptions, engine_config
from flash_llm_ros.convert.calibration_text import tokens_of
from flash_llm_ros.convert.ffn_weights import FfnWeights
from flash_llm_ros.convert.measured_loss import LossMeter
from flash_llm_ros.convert.neuron_order import Order, by_coactivation, by_frequency
from flash_llm_ros.convert.samples import Samples
from flash_llm_ros.convert.traces import Traces, record
from flash_llm_ros.engine import Engine
from flash_llm_ros.store import flash_store as names
from flash_llm_ros.store.aggressive import (
    CORRECTIONS,
    HEAD_GRAPH,
    HEAD_SKETCH,
    NEURON_ORDER,
    Aggressive,
    LeadingShare,
)
from flash_llm_ros.store.durability import sync
from flash_llm_ros.store.flash_store import FlashStore, file_sha256
from flash_llm_ros.store.geometry import Section
from flash_llm_ros.store.graph_builder import ExternalData
from flash_llm_ros.store.head_sketch_graph import FORMAT, head_sketch_graph, head_sketch_layout
from flash_llm_ros.store.neuron_reader import NeuronReader
from flash_llm_ros.store.neuron_writer import NeuronWriter
from flash_llm_ros.store.recovery import RECOVERY, correction_names, setting_name
from flash_llm_ros.store.resident_layout import matrix_tensors, up_bias
from flash_llm_ros.store.tensor_file import TensorFile, TensorFileWriter
from flash_llm_ros.store.writer import Progress

_RANK_STEP = 64         # of the sketch: whole blocks of its 8-bit factors
_FFN_TOKENS = 6144      # for a layer's statistics: 6144 * 8960 float32 are 220 MB
ACTIVITY_ORDERS = {'frequency': by_frequency, 'coactivation': by_coactivation}


@dataclass(frozen=True)
class OrderOptions:
    """What may be chosen; ValueError on creation."""

    shares: tuple[float, ...] = (1.0, 0.9, 0.8, 0.7)
    rank: int = 16                  # of the corrections; resident: 2 * rank * d floats a layer
    head_rank: int | None = None    # None: a sixth of the hidden size
    head_rows: int = 1024
    most_tokens: int = 8192
    measured_tokens: int = 512
    most_loss: float = 0.1          # of perplexity, at the default share
    activity: str = 'frequency'     # what orders a ReLU model's neurons
    replace: bool = False

    def __post_init__(self) -> None:
        least = 1 - LEFT_OUT[-1]
        if not self.shares or any(not least <= share <= 1 for share in self.shares):
            raise ValueError(f'shares are {self.shares}; each must be from {least:g} to 1')
        for name in ('rank', 'head_rows', 'most_tokens', 'measured_tokens'):
            if (value := getattr(self, name)) < 1:
                raise ValueError(f'{name} is {value}; it must be at least 1')
        if self.activity not in ACTIVITY_ORDERS:
            raise ValueError(f'activity is {self.activity!r}; it must be one of '
                             f'{", ".join(ACTIVITY_ORDERS)}')


def order_store(source: Path, target: Path, texts: list[str], options: OrderOptions,
                progress: Progress) -> FlashStore:
    """Write `target` from the store `source`, which stays as it is.

    The new store holds the same weights; it has no calibration, which depends on the order.
    Nothing is left behind when it fails. Raises FlashLlmError, FileExistsError and ValueError.
    """
    store = FlashStore.open(source)
    if target.exists() and not (options.replace and (target / names.MANIFEST).is_file()):
        raise FileExistsError(f'{target} exists; give another name, or --replace where it is a '
                              'flash store.')
    work = target.with_name(f'.{target.name}.partial-{os.getpid()}')
    shutil.rmtree(work, ignore_errors=True)
    try:
        _copy(store, work)
        samples, squares, normed = _read_text(store, texts, work / 'traces', options,
                                                    progress)
        if store.manifest.layout == 'split':
            _prepare_aggressive(store, work, samples, squares, normed, options, progress)
        else:
            orders = _by_activity(store, samples, options, progress)
            shutil.rmtree(work / 'traces')
            _write_neurons(store, work, orders, progress)
            _reorder_biases(store, work, orders)
            _seal(store, work, None)
        return _publish(work, target)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _prepare_aggressive(store: FlashStore, work: Path, samples: Samples,
                        squares: NDArray[np.float64], normed: NDArray[np.float32],
                        options: OrderOptions, progress: Progress) -> None:
    layers = _layers(store, samples, options, progress)
    shutil.rmtree(work / 'traces')
    _write_neurons(store, work, [layer.order for layer in layers], progress)
    widths = _write_corrections(work, layers, squares, options)
    _write_head_sketch(store, work, normed, _head_rank(store, options), progress)
    shares = {name: LeadingShare(found, 0.0) for name, found in widths.items()}
    prepared = Aggressive(len(samples.tokens), 0, _head_rank(store, options),
                          options.head_rows, max(options.shares), shares)
    _seal(store, work, prepared)
    _seal(store, work, _measured(FlashStore.open(work), prepared, samples, options, progress))


def _head_rank(store: FlashStore, options: OrderOptions) -> int:
    wanted = options.head_rank or store.manifest.model.hidden_size // 6
    return -(-wanted // _RANK_STEP) * _RANK_STEP


def _copy(store: FlashStore, work: Path) -> None:
    for name in store.manifest.files:
        if name != names.NEURONS and not name.startswith((names.FIRST_PREDICTORS, RECOVERY)):
            (work / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(store.path / name, work / name)


@contextmanager
def _opened(store: FlashStore, **changes: object) -> Iterator[Engine]:
    engine = Engine.open(replace(engine_config(store, CalibrationOptions()), **changes))
    try:
        yield engine
    finally:
        engine.close()


def _read_text(store: FlashStore, texts: list[str], folder: Path, options: OrderOptions,
               progress: Progress) -> tuple[Samples, NDArray[np.float64], NDArray[np.float32]]:
    """A recording, squared lengths of the residual stream [layers], inputs of the head."""
    with _opened(store) as engine:
        tokens = tokens_of(engine, texts, options.most_tokens)
        model = engine.model
        meter = ResidualMeter(model.feed_forward, model.spec.layers)
        model.feed_forward = meter
        traces: Traces = record(engine, tokens, folder,
                                lambda done, total: progress('reading text', done, total))
        samples = Samples(traces, np.array(tokens, np.int64), engine.config.context_length)
        return samples, meter.squares, model.attention.final_norm(meter.last)


def _layers(store: FlashStore, samples: Samples, options: OrderOptions,
            progress: Progress) -> list[LeadingLayer]:
    found, count = [], store.manifest.model.layers
    with NeuronReader(store) as reader:
        for layer in range(count):
            weights = FfnWeights(reader, store.manifest, layer)
            x = samples.train(layer, _FFN_TOKENS)
            found.append(leading_layer(weights, x, options.rank))
            progress('ordering neurons', layer + 1, count)
    return found


def _by_activity(store: FlashStore, samples: Samples, options: OrderOptions,
                 progress: Progress) -> list[Order]:
    found, count = [], store.manifest.model.layers
    with NeuronReader(store) as reader:
        for layer in range(count):
            weights = FfnWeights(reader, store.manifest, layer)
            active = weights.activations(samples.train(layer, _FFN_TOKENS)) != 0
            found.append(ACTIVITY_ORDERS[options.activity](active))
            progress('ordering neurons', layer + 1, count)
    return found


def _reorder_biases(store: FlashStore, work: Path, orders: list[Order]) -> None:
    """Biases of up rows are resident, in the order of the neurons."""
    if not store.manifest.model.feed_forward.bias:
        return
    with TensorFile(store.path / names.RESIDENT) as tensors:
        found = {name: tensors.read(name) for name in tensors.names()}
    for layer, order in enumerate(orders):
        found[up_bias(layer)] = found[up_bias(layer)][order]
    _write_tensors(work / names.RESIDENT, found)


def _write_neurons(store: FlashStore, work: Path, orders: list[Order],
                   progress: Progress) -> None:
    """The same bytes, bundle for bundle, in another order."""
    geometry = store.manifest.geometry
    writer = NeuronWriter(work / names.NEURONS, geometry)
    with NeuronReader(store) as reader:
        for section in geometry.sections:
            parts = (part for _, part in reader.encoded(section))
            if section.layer >= 0:
                parts = iter([np.concatenate(list(parts))[orders[section.layer]]])
            writer.write_encoded(section, parts)
            progress('neurons', section.end_group, geometry.groups)
    writer.close()
    _write_tensors(work / NEURON_ORDER,
                   {f'{layer}': order for layer, order in enumerate(orders)})


def _write_tensors(path: Path, tensors: dict[str, NDArray]) -> None:
    writer = TensorFileWriter(path, {name: (tensor.dtype, tensor.shape)
                                     for name, tensor in tensors.items()})
    for name, tensor in tensors.items():
        writer.write(name, tensor)
    writer.close()


def _write_corrections(work: Path, layers: list[LeadingLayer], squares: NDArray[np.float64],
                       options: OrderOptions) -> dict[str, list[int]]:
    """Returns the widths of all layers for each share."""
    losses = np.array([layer.errors for layer in layers]) / squares[:, None]
    tensors: dict[str, NDArray[np.float32]] = {}
    widths = {}
    for share in options.shares:
        name = setting_name(share)
        steps = allocate(losses, LEFT_OUT, 1 - share)
        widths[name] = [layer.widths[step] for layer, step in zip(layers, steps, strict=True)]
        for index, (layer, step) in enumerate(zip(layers, steps, strict=True)):
            correction: LowRankMap = layer.corrections[step]
            tensors |= dict(zip(correction_names(name, index), correction, strict=True))
    _write_tensors(work / CORRECTIONS, tensors)
    return widths


def _write_head_sketch(store: FlashStore, work: Path, normed: NDArray[np.float32], rank: int,
                       progress: Progress) -> None:
    spec, geometry = store.manifest.model, store.manifest.geometry
    section: Section = geometry.section('embedding' if spec.embedding.tied else 'head')
    layout = head_sketch_layout(spec, rank)
    writer = TensorFileWriter(work / HEAD_SKETCH, layout)
    with NeuronReader(store) as reader:
        inner, outer_rows = head_factors(lambda: (part[:, 0] for _, part in reader.parts(section)),
                                         normed, rank)
        outer = np.concatenate(list(outer_rows))
    for name, matrix in (('head.inner', inner), ('head.outer', outer)):
        for key, tensor in matrix_tensors(name, matrix, FORMAT).items():
            writer.write(key, tensor)
    writer.close()
    data = ExternalData(HEAD_SKETCH, layout, writer.offsets)
    (work / HEAD_GRAPH).write_bytes(head_sketch_graph(spec, rank, data))
    progress('head sketch', 1, 1)


def _measured(store: FlashStore, prepared: Aggressive, samples: Samples, options: OrderOptions,
              progress: Progress) -> Aggressive:
    """The same settings with their price on pieces of text that nothing was learned from."""
    pieces = samples.held_out_pieces(options.measured_tokens)

    def perplexity(**changes: object) -> float:
        with _opened(store, **changes) as engine:
            return LossMeter(engine, pieces).perplexity(None)

    exact, shares = perplexity(), {}
    for name, share in prepared.shares.items():
        found = perplexity(mode='aggressive', neuron_share=float(name))
        shares[name] = replace(share, perplexity=round(found / exact, 4))
        progress('measuring', len(shares), len(prepared.shares))
    good = [float(name) for name, share in shares.items()
            if share.perplexity <= 1 + options.most_loss]
    return replace(prepared, shares=shares, measured_tokens=sum(map(len, pieces)),
                   default_share=min(good, default=max(options.shares)))


def _seal(store: FlashStore, work: Path, aggressive: Aggressive | None) -> None:
    files = {}
    for path in sorted(path for path in work.rglob('*') if path.is_file()):
        if (name := path.relative_to(work).as_posix()) != names.MANIFEST:
            files[name] = {'bytes': path.stat().st_size, 'sha256': file_sha256(path)}
    replace(store.manifest, files=files, calibration=None, aggressive=aggressive,
            recovery=None).save(work / names.MANIFEST)


def _publish(work: Path, target: Path) -> FlashStore:
    for path in (*work.rglob('*'), work):
        sync(path)
    old = target.with_name(f'.{target.name}.old-{os.getpid()}')
    if target.exists():
        target.rename(old)
    work.rename(target)
    shutil.rmtree(old, ignore_errors=True)
    return FlashStore.open(target)
