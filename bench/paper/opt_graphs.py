"""What ONNX Runtime computes for a model of bench.paper.opt_files: attention and predictors."""

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

from bench.paper.opt_files import OptFiles, OptShape
from flash_llm_ros.engine.model.graph_loader import Feeds, GraphLoader
from flash_llm_ros.onnx_runtime import ort
from flash_llm_ros.store.graph_builder import ExternalData, GraphBuilder, value
from flash_llm_ros.store.tensor_file import TensorFile

Array = NDArray[np.float32]
_HALF, _INT = TensorProto.FLOAT16, TensorProto.INT32


class Attention:
    """Attention over a KV cache in fp16, updated in place; the matrices are not in it."""

    def __init__(self, shape: OptShape, context: int, threads: int) -> None:
        session = GraphLoader('', threads, prepack=True).load(_attention_graph(shape, context),
                                                              'attention')
        size = shape.dim // shape.heads
        random = np.random.default_rng(0)
        keys = random.standard_normal((2, 1, shape.heads, context, size), np.float32)
        self._cache = np.repeat(keys.astype(np.float16)[None], shape.layers, axis=0)
        self._qkv = np.zeros((1, 1, 3 * shape.dim), np.float32)
        self._attended = np.zeros((1, 1, shape.dim), np.float32)
        self._last_position, self._total_length = np.zeros((2, 1), np.int32)
        self._session = session
        self._bindings = [self._bind(*cache) for cache in self._cache]

    def run(self, layer: int, position: int, qkv: Array) -> Array:
        """float32 [1, 3 d] -> [1, d], valid until the next call."""
        self._qkv[0] = qkv
        self._last_position[0], self._total_length[0] = position, position + 1
        self._session.run_with_iobinding(self._bindings[layer])
        return self._attended[0]

    def _bind(self, key: NDArray[np.float16], value: NDArray[np.float16]) -> ort.IOBinding:
        inputs = {'qkv': self._qkv, 'past_key': key, 'past_value': value,
                  'last_position': self._last_position, 'total_length': self._total_length}
        outputs = {'attended': self._attended, 'present_key': key, 'present_value': value}
        return _binding(self._session, inputs, outputs)


class Predictors:
    """The cost of low-rank predictors, one a layer; what they answer is random as their weights."""

    def __init__(self, files: OptFiles, threads: int) -> None:
        shape = files.shape
        self._x = np.zeros((1, shape.dim), np.float32)
        self._wanted = np.zeros((1, shape.ffn), np.uint8)
        self._threshold = np.zeros(1, np.float32)
        # Kept, as sessions read biases where it has put them.
        self._loader = GraphLoader(str(files.predictors.parent), threads, prepack=True)
        self._runs = []
        with TensorFile(files.predictors) as tensors:
            self.bytes = sum(tensors.nbytes(name) for name in tensors.names())
            for layer in range(shape.layers):
                session = self._loader.load(files.predictor_graph(layer).read_bytes(),
                                            f'predictor {layer}', tensors,
                                            f'predictors.{layer}.', self._probe)
                self._runs.append((session, _binding(
                    session, {'ffn_input': self._x, 'threshold': self._threshold},
                    {'wanted': self._wanted})))
            tensors.drop_page_cache()

    def run(self, layer: int, ffn_input: Array) -> NDArray[np.uint8]:
        """float32 [1, d] -> uint8 [ffn], valid until the next call."""
        self._x[:] = ffn_input
        session, binding = self._runs[layer]
        session.run_with_iobinding(binding)
        return self._wanted[0]

    def _probe(self) -> Feeds:
        x = np.sin(np.arange(self._x.size, dtype=np.float32)).reshape(1, -1)
        return {'ffn_input': x, 'threshold': self._threshold}


def _attention_graph(shape: OptShape, context: int) -> bytes:
    """qkv [1, 1, 3 d] and the cache -> attended [1, 1, d] and the cache; OPT has no rotary part."""
    g = GraphBuilder('fp32', ExternalData('', {}, {}))
    g.node('Cast', ['qkv'], ['qkv_half'], to=_HALF)
    g.node('GroupQueryAttention',
           ['qkv_half', '', '', 'past_key', 'past_value', 'last_position', 'total_length'],
           ['attended_half', 'present_key', 'present_value'], 'com.microsoft',
           num_heads=shape.heads, kv_num_heads=shape.heads)
    g.node('Cast', ['attended_half'], ['attended'], to=TensorProto.FLOAT)
    cache = [1, shape.heads, context, shape.dim // shape.heads]
    inputs = [value('qkv', TensorProto.FLOAT, [1, 1, 3 * shape.dim]),
              value('past_key', _HALF, cache), value('past_value', _HALF, cache),
              value('last_position', _INT, [1]), value('total_length', _INT, [1])]
    outputs = [value('attended', TensorProto.FLOAT, [1, 1, shape.dim]),
               value('present_key', _HALF, cache), value('present_value', _HALF, cache)]
    return g.model('attention', inputs, outputs)


def _binding(session: ort.InferenceSession, inputs: Feeds, outputs: Feeds) -> ort.IOBinding:
    binding = session.io_binding()
    for name, array in inputs.items():
        binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(array))
    for name, array in outputs.items():
        binding.bind_ortvalue_output(name, ort.OrtValue.ortvalue_from_numpy(array))
    return binding
