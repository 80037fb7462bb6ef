"""The ONNX predictor of a layer: low-rank gate (and up), activation, comparison."""

import numpy as np
from onnx import TensorProto

from flash_llm_ros.model_spec import ModelSpec
from flash_llm_ros.store.layer_graphs import ExternalData, GraphBuilder, value
from flash_llm_ros.store.resident_layout import Layout, matrix_layout

RESIDENT = 'q8'


def predictor_layout(spec: ModelSpec, layout: str, rank: int) -> Layout:
    """Tensors of predictors.safetensors; `outer` has gate and up rows in the split layout."""
    tensors: Layout = {}
    for layer in range(spec.layers):
        prefix = f'predictors.{layer}'
        tensors |= matrix_layout(f'{prefix}.inner', rank, spec.hidden_size, RESIDENT)
        tensors |= matrix_layout(f'{prefix}.outer', outer_rows(spec, layout), rank, RESIDENT)
        if layout == 'split':
            tensors[f'{prefix}.down_norm'] = (np.float32, (spec.ffn_size,))
    return tensors


def outer_rows(spec: ModelSpec, layout: str) -> int:
    return spec.ffn_size * (2 if layout == 'split' else 1)


def predictor_graph(spec: ModelSpec, layout: str, layer: int, rank: int,
                    data: ExternalData) -> bytes:
    """ffn_input [1, d] and threshold [1] float32 -> wanted uint8 [1, ffn], score float32 [1, ffn].

    What scores higher than the threshold is wanted. Split layout: the size of silu(gate) * up,
    where the rows of up are scaled by the norms of the down columns. Bundled layout: the gate's
    pre-activation.
    """
    g = GraphBuilder(RESIDENT, data)
    prefix, f = f'predictors.{layer}', spec.ffn_size
    g.matmul('ffn_input', f'{prefix}.inner', 'inner', rank, spec.hidden_size)
    g.matmul('inner', f'{prefix}.outer', 'outer', outer_rows(spec, layout), rank)
    if layout == 'split':
        g.node('Split', ['outer', g.inline('halves', np.array([f, f], np.int64))],
               ['gate', 'up'], axis=-1)
        g.node('Sigmoid', ['gate'], ['gate_sigmoid'])
        g.node('Mul', ['gate', 'gate_sigmoid'], ['gate_silu'])
        g.node('Mul', ['gate_silu', 'up'], ['signed_score'])
        g.node('Abs', ['signed_score'], ['score'])
    else:
        g.node('Identity', ['outer'], ['score'])
    g.node('Greater', ['score', 'threshold'], ['wanted_bool'])
    g.node('Cast', ['wanted_bool'], ['wanted'], to=TensorProto.UINT8)
    return g.model(f'predictor_{layer}',
                   [value('ffn_input', TensorProto.FLOAT, [1, spec.hidden_size]),
                    value('threshold', TensorProto.FLOAT, [1])],
                   [value('wanted', TensorProto.UINT8, [1, f]),
                    value('score', TensorProto.FLOAT, [1, f])])
