"""The ONNX graphs of a store: norm, attention with an in-place KV cache, norm.

Matrices are external data in a tensor file, so that they exist once on disk; norms are inline.
Shapes: hidden, ffn_input, residual [1, S, d] float32; past and present keys and values
[1, kv_heads, context, head_dim]; cos, sin [context, rotary_width / 2], where positions are rotary.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
import onnx
from onnx import TensorProto, helper, numpy_helper

from flash_llm_ros.model_spec import ModelSpec
from flash_llm_ros.store.block_quantisation import OFFSET_BLOCK, Q4_BLOCK, block_of

Rows = Callable[[str], NDArray[np.float32]]      # a tensor by its canonical name

_MS = 'com.microsoft'
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
               bias: NDArray[np.float32] | None = None) -> None:
        """output = source @ matrix.T + bias for the matrix [rows, columns] called `name`.

        `source` is [1, S, columns], `bias` float32 [rows].
        """
        added = [] if bias is None else [self.inline(f'{output}.bias', bias)]
        if self.resident == 'fp32':
            product = f'{output}.product' if added else output
            self.node('MatMul', [source, self.external(f'{name}.weight')], [product])
            if added:
                self.node('Add', [product, *added], [output])
        elif self.resident in ('q2', 'q8'):
            self._quantised(source, name, output, rows, columns, int(self.resident[1:]),
                            block_of(self.resident, columns), added)
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
        self.node('MatMulNBits', [*inputs, *(['', '', *bias] if bias else [])], [output], _MS,
                  K=columns, N=rows, bits=bits, block_size=block,
                  accuracy_level=_ACCURACY_LEVEL)

    def model(self, name: str, inputs: list[onnx.ValueInfoProto],
              outputs: list[onnx.ValueInfoProto]) -> bytes:
        graph = helper.make_graph(self.nodes, name, inputs, outputs, self.initializers)
        opsets = [helper.make_opsetid('', 17), helper.make_opsetid(_MS, 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=8,
                                 producer_name='flash_llm_ros').SerializeToString()


def value(name: str, dtype: int, shape: list[int | str]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, dtype, shape)


def layer_graph(spec: ModelSpec, layer: int, resident: str, kv_cache: str, data: ExternalData,
                rows: Rows) -> bytes:
    """Everything of a layer but its feed-forward block.

    A bias on the block's output is in the residual already. Where norms come last, a layer begins
    with the last norm of the one before.
    """
    g = GraphBuilder(resident, data)
    d, size, prefix = spec.hidden_size, spec.attention.head_dim, f'layers.{layer}'
    hidden = 'hidden'
    if spec.norm.first:
        _norm(g, spec, hidden, f'{prefix}.attention_norm', 'normed', rows)
    elif layer:
        hidden = _norm(g, spec, hidden, f'layers.{layer - 1}.ffn_norm', 'normed', rows)
    qkv_bias = (np.concatenate([rows(f'{prefix}.{part}_bias') for part in 'qkv'])
                if spec.attention.bias else None)
    g.matmul('normed' if spec.norm.first else hidden, f'{prefix}.qkv', 'qkv',
             spec.attention.qkv_width, d, qkv_bias)
    _attention(g, spec, kv_cache == 'fp16')
    g.matmul('attended', f'{prefix}.o', 'projected', d, spec.attention.query_width,
             rows(f'{prefix}.o_bias') if spec.attention.output_bias else None)
    _into_block(g, spec, prefix, hidden, rows)

    kv_type = TensorProto.FLOAT16 if kv_cache == 'fp16' else TensorProto.FLOAT
    cache = [1, spec.attention.kv_heads, 'context', size]
    inputs = [value('hidden', TensorProto.FLOAT, [1, 'S', d]),
              value('past_key', kv_type, cache), value('past_value', kv_type, cache),
              value('last_position', TensorProto.INT32, [1]),
              value('total_length', TensorProto.INT32, [1])]
    if spec.positions.kind == 'rotary':
        inputs += [value(name, kv_type, ['context', spec.rotary_width // 2])
                   for name in ('cos', 'sin')]
    outputs = [value('ffn_input', TensorProto.FLOAT, [1, 'S', d]),
               value('residual', TensorProto.FLOAT, [1, 'S', d]),
               value('present_key', kv_type, cache), value('present_value', kv_type, cache)]
    return g.model(f'layer_{layer}', inputs, outputs)


def final_graph(spec: ModelSpec, rows: Rows) -> bytes:
    """The norm before the output head: hidden -> normed, both [1, S, d] float32."""
    g = GraphBuilder('fp32', ExternalData('', {}, {}))
    last = 'final_norm' if spec.norm.first else f'layers.{spec.layers - 1}.ffn_norm'
    _norm(g, spec, 'hidden', last, 'normed', rows)
    shape = [1, 'S', spec.hidden_size]
    return g.model('final', [value('hidden', TensorProto.FLOAT, shape)],
                   [value('normed', TensorProto.FLOAT, shape)])


def _attention(g: GraphBuilder, spec: ModelSpec, half: bool) -> None:
    """From qkv to attended, through the KV cache."""
    rotary = spec.positions.kind == 'rotary'
    qkv = 'qkv'
    if half:
        g.node('Cast', [qkv], ['qkv_half'], to=TensorProto.FLOAT16)
        qkv = 'qkv_half'
    g.node('GroupQueryAttention',
           [qkv, '', '', 'past_key', 'past_value', 'last_position', 'total_length',
            *(['cos', 'sin'] if rotary else [])],
           ['attended16' if half else 'attended', 'present_key', 'present_value'], _MS,
           num_heads=spec.attention.heads, kv_num_heads=spec.attention.kv_heads,
           do_rotary=int(rotary), rotary_interleaved=0)
    if half:
        g.node('Cast', ['attended16'], ['attended'], to=TensorProto.FLOAT)


def _into_block(g: GraphBuilder, spec: ModelSpec, prefix: str, hidden: str, rows: Rows) -> None:
    """The block's input, and the residual stream that its output is to be added to."""
    norm = f'{prefix}.{"ffn" if spec.norm.first else "attention"}_norm'
    if spec.norm.kind == 'rms' and spec.norm.first and not spec.feed_forward.bias:
        g.node('SkipSimplifiedLayerNormalization',
               [hidden, 'projected', g.inline('ffn_norm', rows(norm))],
               ['ffn_input', '', '', 'residual'], _MS, epsilon=spec.norm.eps)
        return
    g.node('Add', [hidden, 'projected'], ['sum'])
    _norm(g, spec, 'sum', norm, 'ffn_input', rows)
    stream = 'sum' if spec.norm.first else 'ffn_input'
    if spec.feed_forward.bias:
        g.node('Add', [stream, g.inline('down_bias', rows(f'{prefix}.down_bias'))], ['residual'])
    else:
        g.node('Identity', [stream], ['residual'])


def _norm(g: GraphBuilder, spec: ModelSpec, source: str, name: str, output: str,
          rows: Rows) -> str:
    """Returns `output`."""
    weight = g.inline(f'{output}.weight', rows(name))
    if spec.norm.kind == 'rms':
        g.node('SimplifiedLayerNormalization', [source, weight], [output], axis=-1,
               epsilon=spec.norm.eps)
    else:
        bias = g.inline(f'{output}.bias', rows(f'{name}_bias'))
        g.node('LayerNormalization', [source, weight, bias], [output], axis=-1,
               epsilon=spec.norm.eps)
    return output
