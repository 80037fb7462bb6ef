"""The weights of a finished split store by the canonical names of a checkpoint's tensors."""

import re

import numpy as np
from numpy.typing import NDArray
import onnx
from onnx import numpy_helper

from flash_llm_ros.store.block_quantisation import QuantisedMatrix, dequantise
from flash_llm_ros.store.flash_store import FINAL_GRAPH, RESIDENT, FlashStore, layer_graph
from flash_llm_ros.store.neuron_reader import NeuronReader
from flash_llm_ros.store.tensor_file import TensorFile

Array = NDArray[np.float32]
_BITS = {'q2': 2, 'q4': 4, 'q8': 8}
# What graphs call their norms' weights; earlier releases had other names for some.
_NORMS = {'attention_norm': ('normed.weight', 'attention_norm'), 'ffn_norm': ('ffn_norm',),
          'final_norm': ('normed.weight', 'final_norm')}
_GATE_UP = {'gate': 0, 'up': 1}


class StoreTensors:
    """What a store computes with, rounded as it is, of a llama-shaped model."""

    def __init__(self, store: FlashStore) -> None:
        """ValueError where the layout is not split."""
        if store.manifest.layout != 'split':
            raise ValueError(f'{store.path} has the {store.manifest.layout} layout; it must be '
                             'split, as of gated-SiLU models')
        self.path, self.spec, self._store = store.path, store.manifest.model, store

    def rows(self, name: str) -> Array:
        """A whole tensor as float32; KeyError."""
        if name in ('embedding', 'head'):
            return self._section(name)[:, 0]
        if name == 'final_norm':
            return self._inline(FINAL_GRAPH, _NORMS[name])
        match = re.fullmatch(r'layers\.(\d+)\.(\w+)', name)
        if match is None or int(match[1]) >= self.spec.layers:
            raise KeyError(name)
        layer, part = int(match[1]), match[2]
        if part in _NORMS:
            return self._inline(layer_graph(layer), _NORMS[part])
        if part in _GATE_UP:
            return np.ascontiguousarray(self._section('gate_up', layer)[:, _GATE_UP[part]])
        if part == 'down':
            return np.ascontiguousarray(self._section('down', layer)[:, 0].T)
        if part == 'o':
            return self._matrix(f'layers.{layer}.o', self.spec.attention.query_width)
        return self._query_part(layer, part)

    def _query_part(self, layer: int, part: str) -> Array:
        """q, k and v lie in one matrix, and their biases in one vector."""
        head, bias = part[0], part.endswith('_bias')
        if part.removesuffix('_bias') not in ('q', 'k', 'v'):
            raise KeyError(f'layers.{layer}.{part}')
        whole = (self._inline(layer_graph(layer), ('qkv.bias',)) if bias
                 else self._matrix(f'layers.{layer}.qkv', self.spec.hidden_size))
        query, key = self.spec.attention.query_width, self.spec.attention.kv_width
        return np.split(whole, [query, query + key])['qkv'.index(head)]

    def _section(self, name: str, layer: int = -1) -> Array:
        with NeuronReader(self._store) as reader:
            return reader.bundles(name, layer)

    def _inline(self, graph: str, known_as: tuple[str, ...]) -> Array:
        model = onnx.load_model_from_string(self._store.content(graph))
        for tensor in model.graph.initializer:
            if tensor.name in known_as:
                return numpy_helper.to_array(tensor)
        raise KeyError(f'{graph}: {known_as[0]}')

    def _matrix(self, name: str, columns: int) -> Array:
        """float32 [rows, columns]."""
        resident = self._store.manifest.resident
        with TensorFile(self._store.path / RESIDENT) as tensors:
            if resident == 'fp32':
                return np.ascontiguousarray(tensors.read(f'{name}.weight').T)
            return dequantise(_quantised(tensors, name, _BITS[resident]), columns)


def _quantised(tensors: TensorFile, name: str, bits: int) -> QuantisedMatrix:
    offsets = f'{name}.offsets'
    return QuantisedMatrix(bits, tensors.read(f'{name}.data'), tensors.read(f'{name}.scales'),
                           _quantised(tensors, offsets, 8)
                           if f'{offsets}.data' in tensors.names() else None)
