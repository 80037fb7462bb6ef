"""One token through a model of bench.paper.opt_files, with some of the paper's techniques.

Real are the reads, the window, the arithmetic with every weight, attention over the KV cache and
what the predictors cost. Planted is what they predict, because weights are random.
"""

from dataclasses import dataclass
import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.paper.opt_files import NeuronFile, OptFiles
from bench.paper.opt_graphs import Attention, Predictors
from bench.paper.planted_activity import Token
from flash_llm_ros import _native

_CHUNK_BYTES, _CHUNKS = 1 << 20, 8      # the stream ring
_COUNTERS = ('flash_bytes', 'flash_reads', 'read_ns', 'wait_ns', 'claim_ns')
Array = NDArray[np.float32]


@dataclass(frozen=True)
class Technique:
    """A row of the table; shares are of all neurons.

    `resident`: attention and head stay in DRAM, else they are read for every token. `predicted`:
    only predicted neurons are read, into slots for the share `kept`, or for what one layer
    predicts where that is more; else all neurons are used and the share `kept` is pinned.
    `bundled`: a neuron's rows lie together. `ahead`: a layer is also predicted from the input of
    the one before, and read while that one is computed (not in the paper).
    """

    name: str
    resident: bool
    predicted: bool
    kept: float = 0.0
    bundled: bool = True
    ahead: bool = False


def techniques(files: OptFiles, window: float = 0.24) -> list[Technique]:
    """The rows of the paper's Table 2 (hybrid keeps half of the model), and one more."""
    whole, ffn = files.bundled.groups, files.bundled.ffn_groups()
    half = max(0.0, (whole / 2 - (whole - ffn)) / ffn)
    return [Technique('naive', resident=False, predicted=False),
            Technique('hybrid', resident=True, predicted=False, kept=half),
            Technique('+ predictor', resident=True, predicted=True, bundled=False),
            Technique('+ window', resident=True, predicted=True, kept=window, bundled=False),
            Technique('+ bundling', resident=True, predicted=True, kept=window),
            Technique('+ read ahead', resident=True, predicted=True, kept=window, ahead=True)]


class OptModel:
    """A model partly in memory, ready to compute tokens from `position` on."""

    def __init__(self, files: OptFiles, technique: Technique, *, most_predicted: int,
                 position: int = 128, context: int = 384, threads: int = 1,
                 **core_options: Any) -> None:
        """`most_predicted`: neurons of one layer that are predicted at most."""
        shape = files.shape
        self.shape, self.technique, self.position = shape, technique, position
        self._files: list[_OpenFile] = []
        core_options = {**core_options, 'threads': threads}
        apart = technique.predicted and not technique.bundled
        self._whole = self._open(files.bundled, technique.predicted and not apart, most_predicted,
                                 core_options)
        self._ffn = (self._open(files.rows, True, 2 * most_predicted, core_options)
                     if apart else self._whole)
        self._attention = Attention(shape, context, threads)
        self._predictors = Predictors(files, threads) if technique.predicted else None
        self._product = np.zeros((1, shape.dim), np.float32)
        self._qkv = np.zeros((1, 3 * shape.dim), np.float32)
        self._logits = np.zeros((1, shape.vocabulary), np.float32)

    @property
    def direct(self) -> bool:
        """Whether reads bypass the page cache."""
        return all(file.core.direct for file in self._files)

    @property
    def dram_bytes(self) -> int:
        """Weights in DRAM with the memory they are read into, and predictors; no KV cache."""
        predictors = self._predictors.bytes if self._predictors else 0
        return sum(file.slab_bytes for file in self._files) + predictors

    def token(self, hidden: Array, planted: Token) -> dict[str, float]:
        """Replace `hidden` [1, d] by what the layers make of it.

        Returns seconds, and how much each counter of the core grew.
        """
        before = self._counters()
        begin = time.perf_counter()
        for layer in range(self.shape.layers):
            self._whole.run('rows_dot', 'qkv', layer, _normed(hidden), self._qkv)
            attended = self._attention.run(layer, self.position, self._qkv)
            self._whole.run('rows_dot', 'o', layer, attended, self._product)
            hidden += self._product
            self.feed_forward(layer, _normed(hidden), planted, hidden)
        self._whole.run('rows_dot', 'head', 0, _normed(hidden), self._logits)
        seconds = time.perf_counter() - begin
        self.position += 1
        after = self._counters()
        return {'seconds': seconds, **{name: after[name] - before[name] for name in _COUNTERS}}

    def feed_forward(self, layer: int, x: Array, planted: Token, hidden: Array) -> None:
        """Add a layer's FFN of x [1, d] to `hidden` [1, d]."""
        if self._predictors is None:
            self._whole.run('bundled', 'bundle', layer, x, hidden, 'relu')
            return
        self._predictors.run(layer, x)
        predicted = planted.predicted[layer]
        if self.technique.ahead and layer + 1 < self.shape.layers:
            self._ffn.run('prefetch', 'bundle', layer, predicted)       # these come first
            self._predictors.run(layer + 1, x)
            self._ffn.run('prefetch', 'bundle', layer + 1, planted.early[layer + 1])
        if self.technique.bundled:
            self._ffn.run('bundled_sparse', 'bundle', layer, x[0], predicted, hidden[0], 'relu')
            return
        self._ffn.run('prefetch', 'down', layer, predicted)     # all reads at once
        ids = np.flatnonzero(predicted)
        up, down = np.empty((2, len(ids), self.shape.dim), np.float32)
        self._ffn.run('read_rows', 'up', layer, ids, up)
        self._ffn.run('read_rows', 'down', layer, ids, down)
        hidden[0] += np.maximum(up @ x[0], 0) @ down

    def close(self) -> None:
        for file in self._files:
            file.core.close()

    def _open(self, file: NeuronFile, cached: bool, least_slots: int,
              options: dict[str, Any]) -> '_OpenFile':
        how = self.technique
        share_of = {'bundle': 0.0 if how.predicted else how.kept, 'up': 0.0, 'down': 0.0}
        pins = {part: round(share_of.get(part.name, float(how.resident)) * part.groups)
                for part in file.parts}
        slots = max(least_slots, round(how.kept * file.ffn_groups())) if cached else 0
        opened = _OpenFile(file, pins, slots, options)
        self._files.append(opened)
        return opened

    def _counters(self) -> dict[str, int]:
        stats = [file.core.stats() for file in self._files]
        return {name: sum(each[name] for each in stats) for name in _COUNTERS}


class _OpenFile:
    """A neuron file with its pinned groups, and a cache or a stream ring for the others."""

    def __init__(self, file: NeuronFile, pins: dict[Any, int], cache_slots: int,
                 options: dict[str, Any]) -> None:
        chunk = max(1, _CHUNK_BYTES // file.group_bytes)
        slots = sum(pins.values()) + (cache_slots or chunk * _CHUNKS)
        self.slab_bytes = slots * file.group_bytes
        self.core: Any = _native.NeuronCore(str(file.path), file.group_bytes, file.groups, file.dim,
                                            slots, **options)
        self._ids = {(part.name, part.layer): self.core.add_section(
            part.first_group, part.bundles, part.bundles_per_group, len(part.rows), 'fp16')
            for part in file.parts}
        for part, groups in pins.items():
            self.core.pin(self._ids[part.name, part.layer], groups)
        if cache_slots:
            self.core.set_cache(cache_slots)
        else:
            self.core.set_ring(chunk, _CHUNKS)
            self.core.set_stream_order(list(self._ids.values()))

    def run(self, call: str, name: str, layer: int, *arguments: Any) -> None:
        getattr(self.core, call)(self._ids[name, layer], *arguments)


def _normed(hidden: Array) -> Array:
    """Scaled to a root mean square of 1."""
    return hidden / np.float32(np.sqrt(np.mean(np.square(hidden)) + 1e-5))
