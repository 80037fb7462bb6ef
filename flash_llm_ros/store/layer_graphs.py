"""The ONNX graphs of a store: norm, attention with an in-place KV cache, norm.

Matrices are external data in a tensor file, so that they exist once on disk; norms are inline.
Shapes: hidden, ffn_input, residual [1, S, d] float32; past and present keys and values
[1, kv_heads, context, head_dim]; cos, sin [context, rotary_width / 2], where positions are rotary.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, ValueInfoProto

from flash_llm_ros.model_spec import ModelSpec
from flash_llm_ros.store.graph_builder import MS, ExternalData, GraphBuilder, value
from flash_llm_ros.store.router_graph import add_router, router_outputs

Rows = Callable[[str], NDArray[np.float32]]      # a tensor by its canonical name


def layer_graph(spec: ModelSpec, layer: int, resident: str, kv_cache: str, data: ExternalData,
                rows: Rows) -> bytes:
    """Everything of a layer but its feed-forward block.

    A bias on the block's output is in the residual already. Where norms come last, a layer begins
    with the last norm of the one before.
    """
    g = GraphBuilder(resident, data)
    steps = _Layer(g, spec, layer, kv_cache == 'fp16', rows)
    stream, normed = steps.enter('hidden')
    qkv = steps.qkv(normed)
    attended = steps.attention(qkv)
    projected = steps.output(attended)
    steps.into_feed_forward(stream, projected)
    if (experts := spec.feed_forward.experts) is not None:
        add_router(g, experts, f'layers.{layer}.router', spec.hidden_size)
    return g.model(f'layer_{layer}', *_interface(spec, kv_cache))


def final_graph(spec: ModelSpec, rows: Rows) -> bytes:
    """The norm before the output head: hidden -> normed, both [1, S, d] float32."""
    g = GraphBuilder('fp32', ExternalData('', {}, {}))
    last = 'final_norm' if spec.norm.first else f'layers.{spec.layers - 1}.ffn_norm'
    _norm(g, spec, 'hidden', last, 'normed', rows)
    shape = [1, 'S', spec.hidden_size]
    return g.model('final', [value('hidden', TensorProto.FLOAT, shape)],
                   [value('normed', TensorProto.FLOAT, shape)])


class _Layer:
    """The steps of a layer, in order; each takes and returns names of values [1, S, width]."""

    def __init__(self, g: GraphBuilder, spec: ModelSpec, layer: int, half: bool, rows: Rows
                 ) -> None:
        """`half`: the KV cache is fp16."""
        self._g, self._spec, self._layer, self._half, self._rows = g, spec, layer, half, rows

    def enter(self, hidden: str) -> tuple[str, str]:
        """The residual stream, and what attention is given."""
        if self._spec.norm.first:
            return hidden, self._norm(hidden, self._name('attention_norm'), 'normed')
        if self._layer:
            hidden = self._norm(hidden, f'layers.{self._layer - 1}.ffn_norm', 'normed')
        return hidden, hidden

    def qkv(self, normed: str) -> str:
        """Queries, keys and values side by side."""
        attention = self._spec.attention
        bias = (np.concatenate([self._rows(self._name(f'{part}_bias')) for part in 'qkv'])
                if attention.bias else None)
        self._g.matmul(normed, self._name('qkv'), 'qkv', attention.qkv_width,
                       self._spec.hidden_size, bias)
        return 'qkv'

    def attention(self, qkv: str) -> str:
        """Positions, the KV cache and what is attended to; in the type of the cache."""
        attention, rotary = self._spec.attention, self._spec.positions.kind == 'rotary'
        if self._half:
            self._g.node('Cast', [qkv], ['qkv_half'], to=TensorProto.FLOAT16)
            qkv = 'qkv_half'
        self._g.node('GroupQueryAttention',
                     [qkv, '', '', 'past_key', 'past_value', 'last_position', 'total_length',
                      *(['cos', 'sin'] if rotary else [])],
                     ['attended16' if self._half else 'attended', 'present_key', 'present_value'],
                     MS, num_heads=attention.heads, kv_num_heads=attention.kv_heads,
                     do_rotary=int(rotary), rotary_interleaved=0)
        if self._half:
            self._g.node('Cast', ['attended16'], ['attended'], to=TensorProto.FLOAT)
        return 'attended'

    def output(self, attended: str) -> str:
        attention = self._spec.attention
        bias = self._rows(self._name('o_bias')) if attention.output_bias else None
        self._g.matmul(attended, self._name('o'), 'projected', self._spec.hidden_size,
                       attention.query_width, bias)
        return 'projected'

    def into_feed_forward(self, stream: str, projected: str) -> None:
        """ffn_input, and residual, which the block's output is to be added to."""
        g, spec = self._g, self._spec
        norm = self._name('ffn_norm' if spec.norm.first else 'attention_norm')
        if spec.norm.kind == 'rms' and spec.norm.first and not spec.feed_forward.bias:
            g.node('SkipSimplifiedLayerNormalization',
                   [stream, projected, g.inline('ffn_norm', self._rows(norm))],
                   ['ffn_input', '', '', 'residual'], MS, epsilon=spec.norm.eps)
            return
        g.node('Add', [stream, projected], ['sum'])
        self._norm('sum', norm, 'ffn_input')
        stream = 'sum' if spec.norm.first else 'ffn_input'
        if spec.feed_forward.bias:
            bias = g.inline('down_bias', self._rows(self._name('down_bias')))
            g.node('Add', [stream, bias], ['residual'])
        else:
            g.node('Identity', [stream], ['residual'])

    def _norm(self, source: str, name: str, output: str) -> str:
        return _norm(self._g, self._spec, source, name, output, self._rows)

    def _name(self, part: str) -> str:
        return f'layers.{self._layer}.{part}'


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


def _interface(spec: ModelSpec, kv_cache: str
               ) -> tuple[list[ValueInfoProto], list[ValueInfoProto]]:
    """Inputs and outputs of a layer."""
    kv_type = TensorProto.FLOAT16 if kv_cache == 'fp16' else TensorProto.FLOAT
    stream = [1, 'S', spec.hidden_size]
    cache = [1, spec.attention.kv_heads, 'context', spec.attention.head_dim]
    inputs = [value('hidden', TensorProto.FLOAT, stream),
              value('past_key', kv_type, cache), value('past_value', kv_type, cache),
              value('last_position', TensorProto.INT32, [1]),
              value('total_length', TensorProto.INT32, [1])]
    if spec.positions.kind == 'rotary':
        inputs += [value(name, kv_type, ['context', spec.rotary_width // 2])
                   for name in ('cos', 'sin')]
    outputs = [value('ffn_input', TensorProto.FLOAT, stream),
               value('residual', TensorProto.FLOAT, stream),
               value('present_key', kv_type, cache), value('present_value', kv_type, cache)]
    if (experts := spec.feed_forward.experts) is not None:
        outputs += router_outputs(experts)
    return inputs, outputs
