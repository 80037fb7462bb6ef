"""Files of the shape of an OPT model in fp16, with random weights: what bench.paper.table reads.

Two neuron files hold the same FFN. In `bundled.bin` a group is one neuron, its up row beside its
down column; the attention matrices and the output head are in it, too, so that it is the whole
model. In `rows.bin` a group is one row of the FFN: what a store without bundling would read.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
import json
import os
from pathlib import Path
import shutil

import numpy as np
from numpy.typing import NDArray

from flash_llm_ros.cli.progress import Steps
from flash_llm_ros.model_spec import (
    AttentionSpec,
    EmbeddingSpec,
    FeedForwardSpec,
    ModelSpec,
    NormSpec,
    PositionSpec,
)
from flash_llm_ros.store.checksum import group_checksums
from flash_llm_ros.store.codec import row_codec
from flash_llm_ros.store.geometry import CHECKSUM_BYTES
from flash_llm_ros.store.graph_builder import ExternalData
from flash_llm_ros.store.predictor_graph import PredictorForm, predictor_graph
from flash_llm_ros.store.resident_layout import Layout, matrix_layout
from flash_llm_ros.store.tensor_file import TensorFileWriter

_BLOCK = 512            # direct reads are multiples of this
_ROWS_AT_ONCE = 1024
_SEED_OF = {'up': 0, 'down': 1, 'qkv': 2, 'o': 3, 'head': 4, 'predictor': 5}
# Fresh pages are handed to the disk and forgotten after so many bytes.
_FLUSH_BYTES = 256 << 20


@dataclass(frozen=True)
class OptShape:
    """Sizes of the model; predictors have `rank`, in the last four layers `last_rank`."""

    dim: int
    ffn: int
    layers: int
    heads: int
    vocabulary: int
    rank: int
    last_rank: int

    @property
    def parameters(self) -> int:
        attention, ffn = 4 * self.dim ** 2, 2 * self.dim * self.ffn
        return self.layers * (attention + ffn) + self.vocabulary * self.dim

    def predictor_form(self, layer: int) -> PredictorForm:
        return PredictorForm('low_rank',
                             self.last_rank if layer >= self.layers - 4 else self.rank)


OPT_6_7B = OptShape(4096, 16384, 32, 32, 50272, 128, 1024)
SMALL = OptShape(1024, 4096, 8, 16, 8000, 32, 256)


@dataclass(frozen=True)
class Part:
    """A section of a neuron file: bundles of `rows` (the name and layer of each kind of row)."""

    name: str
    layer: int
    rows: tuple[str, ...]
    bundles: int
    bundles_per_group: int
    first_group: int

    @property
    def groups(self) -> int:
        return -(-self.bundles // self.bundles_per_group)


@dataclass(frozen=True)
class NeuronFile:
    """Where everything lies in a file of equal groups."""

    path: Path
    dim: int
    group_bytes: int
    parts: tuple[Part, ...]

    @property
    def groups(self) -> int:
        return self.parts[-1].first_group + self.parts[-1].groups

    @property
    def bytes(self) -> int:
        return self.groups * self.group_bytes

    def ffn_groups(self) -> int:
        return sum(part.groups for part in self.parts if part.name in ('bundle', 'up', 'down'))


@dataclass(frozen=True)
class OptFiles:
    """Everything on disk; the graphs of the predictors have their tensors in `predictors`."""

    shape: OptShape
    seed: int
    bundled: NeuronFile
    rows: NeuronFile
    predictors: Path

    def predictor_graph(self, layer: int) -> Path:
        return self.predictors.with_name(f'predictor_{layer:02}.onnx')


def describe(folder: Path, shape: OptShape, seed: int = 0) -> OptFiles:
    """The files of a folder, whether they exist or not."""
    layers = range(shape.layers)
    whole = [(name, layer, rows, bundles) for layer in layers for name, rows, bundles in
             (('qkv', ('qkv',), 3 * shape.dim), ('o', ('o',), shape.dim),
              ('bundle', ('up', 'down'), shape.ffn))]
    whole.append(('head', 0, ('head',), shape.vocabulary))
    ffn = [(name, layer, (name,), shape.ffn) for layer in layers for name in ('up', 'down')]
    return OptFiles(shape, seed, _planned(folder / 'bundled.bin', shape.dim, whole),
                    _planned(folder / 'rows.bin', shape.dim, ffn),
                    folder / 'predictors.safetensors')


def prepare(files: OptFiles, steps: Steps) -> None:
    """Write all files, unless they are there already; OSError where they do not fit."""
    folder = files.bundled.path.parent
    finished = folder / 'shape.json'
    wanted = json.dumps({'seed': files.seed, 'shape': asdict(files.shape)}, indent=2) + '\n'
    if finished.is_file() and finished.read_text() == wanted and all(
            file.path.is_file() and file.path.stat().st_size == file.bytes
            for file in (files.bundled, files.rows)):
        return
    finished.unlink(missing_ok=True)
    for path in (files.bundled.path, files.rows.path, files.predictors):
        path.unlink(missing_ok=True)
    needed = (files.bundled.bytes + files.rows.bytes) * 102 // 100
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise OSError(f'{folder} has {free / 1e9:.1f} GB free, {needed / 1e9:.1f} GB are needed; '
                      'name another folder with --folder, or run with --small')
    for file in (files.bundled, files.rows):
        _write(file, files.seed, steps)
    _write_predictors(files)
    finished.write_text(wanted)


def weights(seed: int, name: str, layer: int, first: int, count: int,
            dim: int) -> NDArray[np.uint16]:
    """fp16 bits of rows `first` on, [count, dim]: either sign, from 2 ** -7 up to 2 ** -5.

    `first` is a multiple of 1024, `count` at most that.
    """
    random = np.random.Generator(np.random.SFC64([seed, _SEED_OF[name], layer, first]))
    bits = np.frombuffer(random.bytes(2 * count * dim), np.uint16).reshape(count, dim)
    return (bits & 0x87FF) | 0x2000


def _planned(path: Path, dim: int,
             parts: list[tuple[str, int, tuple[str, ...], int]]) -> NeuronFile:
    """A group holds the longest bundle and a checksum, and as many shorter ones as fit."""
    row_bytes = row_codec('fp16', dim).row_bytes
    longest = max(len(rows) for _, _, rows, _ in parts) * row_bytes + CHECKSUM_BYTES
    group_bytes = -(-longest // _BLOCK) * _BLOCK
    planned, next_group = [], 0
    for name, layer, rows, bundles in parts:
        fitting = (group_bytes - CHECKSUM_BYTES) // (len(rows) * row_bytes)
        planned.append(Part(name, layer, rows, bundles, fitting, next_group))
        next_group += planned[-1].groups
    return NeuronFile(path, dim, group_bytes, tuple(planned))


def _write(file: NeuronFile, seed: int, steps: Steps) -> None:
    done = 0
    with file.path.open('wb', buffering=0) as out:
        for part in file.parts:
            for groups in _encoded(file, part, seed):
                out.write(groups.data)
                done += groups.nbytes
                if done % _FLUSH_BYTES < groups.nbytes:
                    _flush(out.fileno())
                steps(f'{file.path.name}, MB', done // 1_000_000, file.bytes // 1_000_000)
        _flush(out.fileno())


def _flush(descriptor: int) -> None:
    os.fdatasync(descriptor)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)


def _encoded(file: NeuronFile, part: Part, seed: int) -> Iterator[NDArray[np.uint8]]:
    """Sealed groups of a part in file order, uint8 [some, group_bytes]."""
    per_group = part.bundles_per_group
    if _ROWS_AT_ONCE % per_group:
        raise ValueError(f'{part.name}: {per_group} bundles a group do not divide {_ROWS_AT_ONCE}')
    for first in range(0, part.bundles, _ROWS_AT_ONCE):
        count = min(_ROWS_AT_ONCE, part.bundles - first)
        rows = np.stack([weights(seed, kind, part.layer, first, count, file.dim)
                         for kind in part.rows], axis=1)
        bundles = rows.reshape(count, -1).view(np.uint8)
        groups = np.zeros((-(-count // per_group), file.group_bytes), np.uint8)
        for place in range(per_group):
            some = bundles[place::per_group]
            groups[:len(some), place * some.shape[1]:(place + 1) * some.shape[1]] = some
        bodies = groups[:, :-CHECKSUM_BYTES]
        sums = group_checksums(0, part.first_group + first // per_group, bodies)
        groups[:, -CHECKSUM_BYTES:] = sums.astype('<u4')[:, None].view(np.uint8)
        yield groups


def _write_predictors(files: OptFiles) -> None:
    """Random 8-bit values, all with the same small scale."""
    random = np.random.default_rng([files.seed, _SEED_OF['predictor']])
    shape = files.shape
    layout: Layout = {}
    for layer in range(shape.layers):
        for name, size in shape.predictor_form(layer).matrices(shape.ffn, shape.dim).items():
            layout |= matrix_layout(f'predictors.{layer}.{name}', *size, 'q8')
        layout[f'predictors.{layer}.bias'] = (np.float32, (shape.ffn,))
    writer = TensorFileWriter(files.predictors, layout)
    for name, (dtype, size) in layout.items():
        if dtype is np.uint8:
            writer.write(name, random.integers(0, 256, size, np.uint8))
        else:
            writer.write(name, np.full(size, 1e-4, np.float32))
    writer.close()
    data = ExternalData(files.predictors.name, layout, writer.offsets)
    for layer in range(shape.layers):
        files.predictor_graph(layer).write_bytes(predictor_graph(
            _spec(shape), layer, shape.predictor_form(layer), data))


def _spec(shape: OptShape) -> ModelSpec:
    return ModelSpec(
        name='opt', model_type='opt', hidden_size=shape.dim, layers=shape.layers,
        max_context=2048, end_tokens=(2,),
        attention=AttentionSpec(shape.heads, shape.heads, shape.dim // shape.heads),
        feed_forward=FeedForwardSpec(shape.ffn, 'relu'), norm=NormSpec('rms', 1e-5),
        positions=PositionSpec('rotary'),
        embedding=EmbeddingSpec(shape.vocabulary, tied=True))
