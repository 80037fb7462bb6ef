"""The ONNX graphs of a store: norm, attention with an in-place KV cache, norm.

Matrices are external data in a tensor file, so that they exist once on disk; norms are inline.
Shapes: hidden, ffn_input, residual [1, S, d] float32; past and present keys and values
[1, kv_heads, context, head_dim]; cos, sin [context, rotary_width / 2], where positions are rotary.
"""

import numpy as np
from onnx import TensorProto, ValueInfoProto

from flash_llm_ros.model_spec import ModelSpec
from flash_llm_ros.store.graph_builder import ExternalData, GraphBuilder, value
from flash_llm_ros.store.graph_operators import MS
from flash_llm_ros.store.resident_layout import float_type
from flash_llm_ros.store.router_graph import Rows


def layer_graph(spec: ModelSpec, layer: int, resident: str, data: ExternalData, rows: Rows
                ) -> bytes:
    """Everything of a layer but its feed-forward block.

    A bias on the block's output is in the residual already. Where norms come last, a layer begins
    with the last norm of the one before.
    """
    g = GraphBuilder(resident, data)
    half = float_type(resident) == np.float16
    steps = _Layer(g, spec, layer, half, rows)
    stream, normed = steps.enter()
    qkv = steps.qk_norms(steps.qkv(normed))
    attended = steps.attention(qkv)
    projected = steps.output(attended)
    steps.into_feed_forward(stream, projected)
    return g.model(f'layer_{layer}', *_interface(spec, layer, half))


def final_graph(spec: ModelSpec, rows: Rows) -> bytes:
    """The norm before the output head: hidden -> normed, both [1, S, d] float32."""
    g = GraphBuilder('fp32', ExternalData('', {}, {}))
    last = 'final_norm' if spec.norm.first else _ffn_norm(spec.layers - 1)
    _norm(g, spec, 'hidden', last, 'normed', rows)
    return g.model('final', [value('hidden', TensorProto.FLOAT, [1, 'S', spec.hidden_size])],
                   [value('normed', TensorProto.FLOAT, [1, 'S', spec.hidden_size])])


class _Layer:
    """The steps of a layer, in order; each takes and returns names of values [1, S, width]."""

    def __init__(self, g: GraphBuilder, spec: ModelSpec, layer: int, half: bool, rows: Rows
                 ) -> None:
        """`half`: the KV cache is fp16."""
        self._g, self._spec, self._layer, self._half, self._rows = g, spec, layer, half, rows

    def enter(self) -> tuple[str, str]:
        """The residual stream, and what attention is given."""
        norm, stream = self._spec.norm, 'hidden'
        if norm.first:
            return stream, self._norm(stream, self._name('attention_norm'),
                                      'ffn_input' if norm.parallel else 'normed')
        if self._layer:
            stream = self._norm(stream, _ffn_norm(self._layer - 1), 'normed')
        return stream, stream

    def qkv(self, normed: str) -> str:
        """Queries, keys and values side by side."""
        attention = self._spec.attention
        bias = (np.concatenate([self._rows(self._name(f'{part}_bias')) for part in 'qkv'])
                if attention.bias else None)
        self._g.matmul(normed, self._name('qkv'), 'qkv', attention.qkv_width,
                       self._spec.hidden_size, bias)
        return 'qkv'

    def qk_norms(self, qkv: str) -> str:
        """The same with queries and keys normed, each head for itself or all together."""
        g, attention = self._g, self._spec.attention
        if attention.qk_norm == 'none':
            return qkv
        widths = np.array([attention.query_width, *[attention.kv_width] * 2], np.int64)
        g.node('Split', [qkv, g.inline('widths', widths)], ['q', 'k', 'v'], axis=-1)
        norm = self._head_norm if attention.qk_norm == 'head' else self._norm
        normed = [norm(part, self._name(f'{part}_norm'), f'{part}_normed') for part in 'qk']
        g.node('Concat', [*normed, 'v'], ['qkv_normed'], axis=-1)
        return 'qkv_normed'

    def _head_norm(self, source: str, name: str, output: str) -> str:
        g, heads = self._g, f'{source}_heads'
        apart = g.inline(f'{source}.apart', np.array([0, 0, -1, self._spec.attention.head_dim]))
        together = g.inline(f'{source}.together', np.array([0, 0, -1]))
        g.node('Reshape', [source, apart], [heads])
        g.node('Reshape', [self._norm(heads, name, f'{heads}.normed'), together], [output])
        return output

    def attention(self, qkv: str) -> str:
        """Positions, the KV cache and what is attended to; in the type of the cache."""
        attention, rotary = self._spec.attention, self._spec.positions.turns(self._layer)
        if self._half:
            self._g.node('Cast', [qkv], ['qkv_half'], to=TensorProto.FLOAT16)
            qkv = 'qkv_half'
        self._g.node('GroupQueryAttention',
                     [qkv, '', '', 'past_key', 'past_value', 'last_position', 'total_length',
                      *(['cos', 'sin'] if rotary else [])],
                     ['attended16' if self._half else 'attended', 'present_key', 'present_value'],
                     MS, num_heads=attention.heads, kv_num_heads=attention.kv_heads,
                     do_rotary=int(rotary), rotary_interleaved=0, softcap=attention.soft_cap,
                     local_window_size=attention.window(self._layer) or -1)
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
        g, spec, norm = self._g, self._spec, self._spec.norm
        if (norm.kind == 'rms' and norm.first and not norm.parallel
                and not spec.feed_forward.bias):
            g.node('SkipSimplifiedLayerNormalization',
                   [stream, projected, g.inline('ffn_norm', self._rows(self._name('ffn_norm')))],
                   ['ffn_input', '', '', 'residual'], MS, epsilon=norm.eps)
            return
        g.node('Add', [stream, projected], ['sum'])
        stream = 'sum'
        if norm.first and not norm.parallel:
            self._norm('sum', self._name('ffn_norm'), 'ffn_input')
        elif not norm.first:
            stream = self._norm('sum', self._name('attention_norm'), 'ffn_input')
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


def _ffn_norm(layer: int) -> str:
    return f'layers.{layer}.ffn_norm'


def _interface(spec: ModelSpec, layer: int, half: bool
               ) -> tuple[list[ValueInfoProto], list[ValueInfoProto]]:
    """Inputs and outputs of a layer."""
    cached = TensorProto.FLOAT16 if half else TensorProto.FLOAT
    stream = [1, 'S', spec.hidden_size]
    cache = [1, spec.attention.kv_heads, 'context', spec.attention.head_dim]
    inputs = [value('hidden', TensorProto.FLOAT, stream),
              value('past_key', cached, cache), value('past_value', cached, cache),
              value('last_position', TensorProto.INT32, [1]),
              value('total_length', TensorProto.INT32, [1])]
    if spec.positions.turns(layer):
        inputs += [value(name, cached, ['context', spec.rotary_width // 2])
                   for name in ('cos', 'sin')]
    outputs = [value('ffn_input', TensorProto.FLOAT, stream),
               value('residual', TensorProto.FLOAT, stream),
               value('present_key', cached, cache), value('present_value', cached, cache)]
    return inputs, outputs
