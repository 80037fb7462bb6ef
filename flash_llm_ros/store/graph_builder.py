"""Builds ONNX graphs whose matrices are external data in a tensor file."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
import onnx
from onnx import TensorProto, helper, numpy_helper

from flash_llm_ros.store.block_quantisation import OFFSET_BLOCK, Q4_BLOCK, block_of
from flash_llm_ros.store.graph_operators import MS, OPERATORS

_ELEMENT = {np.dtype(np.float32): TensorProto.FLOAT, np.dtype(np.float16): TensorProto.FLOAT16,
            np.dtype(np.uint8): TensorProto.UINT8}
# Activations are rounded to 8 bits a block, which is what makes 8-bit weights fast.
_ACCURACY_LEVEL = 4


@dataclass(frozen=True)
class ExternalData:
    """Where tensors of a tensor file lie: name -> (byte offset, byte length)."""

    location: str
    layout: dict[str, tuple[Any, tuple[int, ...]]]
    offsets: dict[str, tuple[int, int]]


@dataclass
class GraphBuilder:
    """Collects the nodes and initializers of one graph."""

    resident: str
    data: ExternalData
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    initializers: list[onnx.TensorProto] = field(default_factory=list)

    def node(self, op: str, inputs: list[str], outputs: list[str], domain: str = '',
             **attributes: Any) -> None:
        """ValueError for an operator that the engine would refuse."""
        if (domain, op) not in OPERATORS:
            raise ValueError(f'{domain}.{op} is not in OPERATORS of graph_operators.py')
        self.nodes.append(helper.make_node(op, inputs, outputs, domain=domain, **attributes))

    def inline(self, name: str, value: NDArray[Any]) -> str:
        self.initializers.append(numpy_helper.from_array(value, name))
        return name

    def external(self, name: str) -> str:
        dtype, shape = self.data.layout[name]
        offset, length = self.data.offsets[name]
        tensor = TensorProto(name=name, data_type=_ELEMENT[np.dtype(dtype)], dims=shape,
                             data_location=TensorProto.EXTERNAL)
        for key, value in (('location', self.data.location), ('offset', offset),
                           ('length', length)):
            tensor.external_data.add(key=key, value=str(value))
        self.initializers.append(tensor)
        return name

    def matmul(self, source: str, name: str, output: str, rows: int, columns: int,
               bias: NDArray[np.float32] | None = None, resident: str | None = None) -> None:
        """output = source @ matrix.T + bias for the matrix [rows, columns] called `name`.

        `source` is [1, S, columns], `bias` float32 [rows], `resident` the matrix's own format.
        """
        added = [] if bias is None else [self.inline(f'{output}.bias', bias)]
        resident = resident or self.resident
        if resident == 'fp32':
            product = f'{output}.product' if added else output
            self.node('MatMul', [source, self.external(f'{name}.weight')], [product])
            if added:
                self.node('Add', [product, *added], [output])
        elif resident in ('q2', 'q8'):
            self._quantised(source, name, output, rows, columns, int(resident[1:]),
                            block_of(resident, columns), added)
        else:
            self._with_offsets(source, name, output, rows, columns, added)

    def _with_offsets(self, source: str, name: str, output: str, rows: int, columns: int,
                      bias: list[str]) -> None:
        """A 4-bit product, and the offsets of its blocks times the sums of the source's blocks."""
        blocks = -(-columns // Q4_BLOCK)
        padded, sums = source, f'{output}.sums'
        if columns % Q4_BLOCK:
            padded = f'{output}.padded'
            pads = np.array([0, 0, 0, 0, 0, blocks * Q4_BLOCK - columns], np.int64)
            self.node('Pad', [source, self.inline(f'{output}.pads', pads)], [padded])
        shape = self.inline(f'{output}.shape', np.array([0, 0, blocks, Q4_BLOCK], np.int64))
        self.node('Reshape', [padded, shape], [f'{output}.blocks'])
        last = self.inline(f'{output}.last', np.array([-1], np.int64))
        self.node('ReduceSum', [f'{output}.blocks', last], [sums], keepdims=0)
        self._quantised(source, name, f'{output}.product', rows, columns, 4, Q4_BLOCK, bias)
        self._quantised(sums, f'{name}.offsets', f'{output}.offsets', rows, blocks, 8,
                        OFFSET_BLOCK, [])
        self.node('Add', [f'{output}.product', f'{output}.offsets'], [output])

    def _quantised(self, source: str, name: str, output: str, rows: int, columns: int, bits: int,
                   block: int, bias: list[str]) -> None:
        inputs = [source, self.external(f'{name}.data'), self.external(f'{name}.scales')]
        self.node('MatMulNBits', [*inputs, *(['', '', *bias] if bias else [])], [output], MS,
                  K=columns, N=rows, bits=bits, block_size=block,
                  accuracy_level=_ACCURACY_LEVEL)

    def model(self, name: str, inputs: list[onnx.ValueInfoProto],
              outputs: list[onnx.ValueInfoProto]) -> bytes:
        graph = helper.make_graph(self.nodes, name, inputs, outputs, self.initializers)
        opsets = [helper.make_opsetid('', 17), helper.make_opsetid(MS, 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=8,
                                 producer_name='flash_llm_ros').SerializeToString()


def value(name: str, dtype: int, shape: list[int | str]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, dtype, shape)
