"""Whether a store holds a checkpoint: its model, its texts, and every weight as it is rounded."""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
import onnx
from onnx import numpy_helper

from flash_llm_ros.checkpoint.checkpoint import Checkpoint
from flash_llm_ros.convert.section_formats import loses_in_int4
from flash_llm_ros.store import flash_store as names
from flash_llm_ros.store.flash_store import FlashStore
from flash_llm_ros.store.geometry import Section
from flash_llm_ros.store.graph_builder import ExternalData
from flash_llm_ros.store.neuron_reader import NeuronReader
from flash_llm_ros.store.resident_layout import attention_layout, up_bias
from flash_llm_ros.store.stored_graphs import stored_graphs
from flash_llm_ros.store.stored_weights import bundles, layer_tensors, model_tensors
from flash_llm_ros.store.tensor_file import TensorFile
from flash_llm_ros.store.writer import Progress

# Squared error relative to the weights as this machine rounds them: another one may round some
# halves the other way.
_SAME = 1e-4
# The same of rows that were rounded for their inputs, which a text gave that is not at hand:
# relative to weights that are not rounded. SmolLM2's head is off by 0.0095, no number by more than
# 0.15 of its largest.
_NEARLY_SAME = 0.05
_STEP = 0.25        # how far a single number may be off: of its row's largest; 4 bits have 1/7
_SIGNATURE = 32     # numbers that tell neurons apart
Array = NDArray[np.float32]


class Comparison:
    """Of one store with one checkpoint; `run` raises ValueError with the first difference."""

    def __init__(self, store: FlashStore, checkpoint: Checkpoint) -> None:
        self._store, self._manifest, self._checkpoint = store, store.manifest, checkpoint
        self._spec, self._rows = checkpoint.spec, checkpoint.rows
        self._orders: dict[int, NDArray[np.intp]] = {}      # of layers whose neurons were sorted

    def run(self, progress: Progress) -> None:
        """All of it; raises CheckpointError and FlashLlmError, too."""
        self._compare_model()
        for name, text in ((names.TOKENIZER, self._checkpoint.tokenizer_json),
                           (names.CHAT_TEMPLATE, self._checkpoint.chat_template)):
            if self._store.text(name) != text:
                raise self._differs(f'{name} is another one')
        self._compare_neurons(progress)
        self._compare_layers(progress)

    def _compare_model(self) -> None:
        name = self._manifest.model.name        # a folder's, which may have been moved
        ours, theirs = (spec.to_dict() for spec in (self._manifest.model,
                                                    replace(self._spec, name=name)))
        for field, value in theirs.items():
            if ours[field] != value:
                raise self._differs(f'{field} is {ours[field]}, in the checkpoint {value}')

    def _compare_neurons(self, progress: Progress) -> None:
        geometry = self._manifest.geometry
        with NeuronReader(self._store) as reader:
            for section, copy in geometry.runs():
                found = (part for _, part in reader.parts(section, copy))
                expected = bundles(self._spec, self._rows, section, copy)
                if self._manifest.order and section.name == 'bundle':
                    ours, theirs = np.concatenate(list(found)), np.concatenate(list(expected))
                    order = self._orders[section.layer] = self._order(section, ours, theirs)
                    found, expected = iter([ours]), iter([theirs[order]])
                pairs = _together(found, expected)
                if self._compensated(section):
                    self._compare_parts(section.label, pairs, _NEARLY_SAME)
                else:
                    self._compare_parts(section.label, ((part, _rounded(section, rows))
                                                        for part, rows in pairs))
                progress('comparing', section.first_group + copy * section.stride
                         + section.groups, geometry.groups)

    def _compensated(self, section: Section) -> bool:
        """Whether it may have been rounded for its inputs."""
        return (section.codec.name == 'int4' and section.copies == 1 and section.name != 'bundle'
                and loses_in_int4(self._checkpoint, section.spec))

    def _order(self, section: Section, found: Array, expected: Array) -> NDArray[np.intp]:
        """Which neuron of the checkpoint each one of the store is: the nearest."""
        ours, theirs = (rows.reshape(len(rows), -1) for rows in (found, expected))
        mixing = np.random.default_rng(0).standard_normal((ours.shape[1], _SIGNATURE), np.float32)
        ours, theirs = ours @ mixing, theirs @ mixing
        order = np.array([np.square(theirs - signature).sum(axis=1).argmin()
                          for signature in ours])
        if len(set(order.tolist())) < len(order):
            raise self._differs(f'{section.label} has other neurons')
        return order

    def _compare_layers(self, progress: Progress) -> None:
        resident = self._manifest.resident
        layout = attention_layout(self._spec, resident)
        nowhere = ExternalData(names.RESIDENT, layout, dict.fromkeys(layout, (0, 0)))
        with TensorFile(self._store.path / names.RESIDENT) as tensors:
            tensors.require(layout)
            for layer in range(self._spec.layers):
                for name, tensor in layer_tensors(self._spec, self._rows, resident, layer):
                    self._compare(name, tensors.read(name), tensor)
                progress('comparing attention', layer + 1, self._spec.layers)
            sorted_biases = {up_bias(layer): order for layer, order in self._orders.items()}
            for name, tensor in model_tensors(self._spec, self._rows, resident):
                order = sorted_biases.get(name)
                self._compare(name, tensors.read(name),
                              tensor if order is None else tensor[order])
        for name, graph in stored_graphs(self._spec, resident, nowhere, self._rows):
            self._compare_graph(name, graph)

    def _compare_graph(self, name: str, graph: bytes) -> None:
        ours, theirs = (dict(_constants(content))
                        for content in (self._store.content(name), graph))
        if ours.keys() != theirs.keys():
            raise self._differs(f'{name} computes something else')
        for constant, expected in theirs.items():
            self._compare(f'{constant} of {name}', ours[constant], expected)

    def _compare(self, name: str, found: NDArray[Any], expected: NDArray[Any]) -> None:
        if found.shape != expected.shape:
            raise self._differs(f'{name} has the shape {found.shape}, in the checkpoint '
                                f'{expected.shape}')
        self._compare_parts(name, [tuple(np.atleast_1d(tensor).astype(np.float32)
                                         for tensor in (found, expected))])

    def _compare_parts(self, name: str, parts: Iterable[tuple[Array, Array]],
                       same: float = _SAME) -> None:
        missed = size = 0.0
        for found, expected in parts:
            largest = np.abs(expected).max(axis=-1, keepdims=True, initial=0)
            if (np.abs(found - expected) > _STEP * largest).any():
                raise self._differs(f'{name} holds other numbers')
            missed += np.square(found - expected, dtype=np.float64).sum()
            size += np.square(expected, dtype=np.float64).sum()
        if missed > same * size:
            raise self._differs(f'{name} holds other numbers')

    def _differs(self, what: str) -> ValueError:
        return ValueError(f'{self._store.path} is not {self._checkpoint.path}: {what}.')


def _together(found: Iterator[Array], expected: Iterator[Array]
              ) -> Iterator[tuple[Array, Array]]:
    """The same rows of both, which come in parts of other lengths."""
    rest = next(found)
    for rows in expected:
        while len(rest) < len(rows):
            rest = np.concatenate([rest, next(found)])
        yield rest[:len(rows)], rows
        rest = rest[len(rows):]


def _rounded(section: Section, rows: Array) -> Array:
    flat = rows.reshape(-1, section.row_values)
    return section.codec.decode(section.codec.encode(flat)).reshape(rows.shape)


def _constants(graph: bytes) -> Iterator[tuple[str, NDArray[Any]]]:
    """What is in the graph itself: norms and biases."""
    for tensor in onnx.load_from_string(graph).graph.initializer:
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            yield tensor.name, numpy_helper.to_array(tensor)
