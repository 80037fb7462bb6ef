"""One token through a model of bench/opt_files.py, with as many of the paper's techniques as told.

Real are the reads, the window, the arithmetic on every weight, attention over the KV cache and
the predictors' cost. Planted is which neurons are predicted, because weights are random.
"""

from dataclasses import dataclass
import time
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto
import onnxruntime as ort
from opt_files import NeuronFile, OptFiles, OptShape, predictor_tensors

from flash_llm_ros import _native
from flash_llm_ros.engine.graph_loader import GraphLoader
from flash_llm_ros.model_spec import ModelSpec
from flash_llm_ros.store.layer_graphs import ExternalData, GraphBuilder, value
from flash_llm_ros.store.predictor_graph import predictor_graph
from flash_llm_ros.store.tensor_file import TensorFile

_CHUNK_BYTES, _CHUNKS = 1 << 20, 8      # the stream ring
_COUNTERS = ('flash_bytes', 'flash_reads', 'misses', 'read_ns', 'wait_ns', 'claim_ns')
Array = NDArray[np.float32]


@dataclass(frozen=True)
class Technique:
    """A row of the table. Shares are of all FFN weights.

    `resident`: attention and head stay in DRAM; else they are read for every token. `pinned`: what
    stays of the FFN where all of it is used. `predicted`: only predicted neurons are read, into
    slots for `window` of the FFN (0: no more than one layer needs at a time, so that nothing is
    left of the token before). `bundled`: up row and down column lie together.
    """

    name: str
    resident: bool = True
    pinned: float = 0.0
    predicted: bool = False
    window: float = 0.0
    bundled: bool = True


class OptModel:
    """A model in memory and on flash, ready to compute tokens from `position` on."""

    def __init__(self, files: OptFiles, technique: Technique, *, position: int, context: int,
                 layer_slots: int, **core_options: Any) -> None:
        """`layer_slots`: neurons that one layer predicts at most."""
        self.shape, self.technique, self.position = files.shape, technique, position
        self._whole = self._open(files.bundled, self._whole_slots(files, layer_slots), core_options)
        self._ffn = self._whole
        if technique.predicted and not technique.bundled:
            slots = self._cache_slots(files.rows, 2 * layer_slots)
            self._ffn = self._open(files.rows, slots, core_options, cache=slots)
        self._attend = Attention(files.shape, context, core_options.get('threads', 1))
        self._predictors = (Predictors(files, core_options.get('threads', 1))
                            if technique.predicted else None)
        shape = files.shape
        self._x, self._out = np.zeros((2, 1, shape.dim), np.float32)
        self._qkv = np.zeros((1, 3 * shape.dim), np.float32)
        self._logits = np.zeros((1, shape.vocabulary), np.float32)
        self._h = np.zeros(shape.ffn, np.float32)

    @property
    def dram_bytes(self) -> int:
        """Weights in DRAM, the memory they are read into included; no KV cache."""
        cores = {id(core): core for core in (self._whole, self._ffn)}.values()
        predictors = self._predictors.bytes if self._predictors else 0
        return sum(core.bytes for core in cores) + predictors

    def token(self, hidden: Array, predicted: NDArray[np.uint8]) -> dict[str, float]:
        """Replace `hidden` [1, d] by what the layers make of it; predicted uint8 [layers, ffn].

        Returns seconds, and how much each counter of the core grew.
        """
        before = self._counters()
        begin = time.perf_counter()
        for layer in range(self.shape.layers):
            self._whole.run('rows_dot', 'qkv', layer, _normed(hidden), self._qkv)
            attended = self._attend(layer, self.position, self._qkv)
            self._whole.run('rows_dot', 'o', layer, attended, self._out)
            hidden += self._out
            x = _normed(hidden)
            if self.technique.predicted:
                self._predictors.run(layer, x)
                self._sparse(layer, x, predicted[layer], hidden)
            else:
                self._whole.run('bundled', 'bundle', layer, x, hidden, 'relu')
        self._whole.run('rows_dot', 'head', 0, _normed(hidden), self._logits)
        seconds = time.perf_counter() - begin
        self.position += 1
        after = self._counters()
        return {'seconds': seconds, **{name: after[name] - before[name] for name in _COUNTERS}}

    def close(self) -> None:
        self._whole.close()
        self._ffn.close()

    def _sparse(self, layer: int, x: Array, wanted: NDArray[np.uint8], hidden: Array) -> None:
        if self.technique.bundled:
            self._ffn.run('bundled_sparse', 'bundle', layer, x[0], wanted, hidden[0], 'relu')
            return
        ids = np.flatnonzero(wanted)
        up = np.empty((len(ids), self.shape.dim), np.float32)
        self._ffn.run('read_rows', 'up', layer, ids, up)
        self._h[ids] = np.maximum(up @ x[0], 0)
        self._ffn.run('add_rows_sparse', 'down', layer, self._h, wanted, hidden[0])

    def _counters(self) -> dict[str, int]:
        cores = {id(core): core for core in (self._whole, self._ffn)}.values()
        stats = [core.native.stats() for core in cores]
        return {name: sum(each[name] for each in stats) for name in _COUNTERS}

    def _whole_slots(self, files: OptFiles, layer_slots: int) -> int:
        """Cache slots in the file of the whole model."""
        if not (self.technique.predicted and self.technique.bundled):
            return 0
        return self._cache_slots(files.bundled, layer_slots)

    def _cache_slots(self, file: NeuronFile, least: int) -> int:
        return max(least, round(self.technique.window * file.ffn_groups()))

    def _open(self, file: NeuronFile, cache: int, options: dict[str, Any]) -> '_Core':
        raise NotImplementedError


class Attention:
    """Attention over a KV cache in fp16, without weights: [1, 3 d] -> [1, d]."""

    def __init__(self, shape: OptShape, context: int, threads: int) -> None:
        size = shape.dim // shape.heads
        g = GraphBuilder('fp32', ExternalData('', {}, {}))
        g.node('Cast', ['qkv'], ['qkv_half'], to=TensorProto.FLOAT16)
        g.node('GroupQueryAttention',
               ['qkv_half', '', '', 'past_key', 'past_value', 'last_position', 'total_length'],
               ['attended_half', 'present_key', 'present_value'], 'com.microsoft',
               num_heads=shape.heads, kv_num_heads=shape.heads)
        g.node('Cast', ['attended_half'], ['attended'], to=TensorProto.FLOAT)
        cache = [1, shape.heads, context, size]
        inputs = [value('qkv', TensorProto.FLOAT, [1, 1, 3 * shape.dim]),
                  value('past_key', TensorProto.FLOAT16, cache),
                  value('past_value', TensorProto.FLOAT16, cache),
                  value('last_position', TensorProto.INT32, [1]),
                  value('total_length', TensorProto.INT32, [1])]
        outputs = [value('attended', TensorProto.FLOAT, [1, 1, shape.dim]),
                   value('present_key', TensorProto.FLOAT16, cache),
                   value('present_value', TensorProto.FLOAT16, cache)]
        self._session = GraphLoader('', threads, prepack=True).load(
            g.model('attention', inputs, outputs))
