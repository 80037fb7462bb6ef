"""How resident matrices are named, shaped and stored in a tensor file."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from flash_llm_ros.model_spec import ModelSpec
from flash_llm_ros.store.block_quantisation import OFFSET_BLOCK, block_of, quantise

Layout = dict[str, tuple[Any, tuple[int, ...]]]
POSITIONS = 'positions'         # what is added to the embedding at each position


def attention_layout(spec: ModelSpec, resident: str) -> Layout:
    """Tensor name -> (dtype, shape) of resident.safetensors, in file order."""
    d, attention = spec.hidden_size, spec.attention
    layout: Layout = {}
    for layer in range(spec.layers):
        if spec.core_attention:
            layout |= {f'layers.{layer}.{name}': (np.float32, (width,))
                       for name, width in layer_vectors(spec, layer).items()}
        else:
            layout |= matrix_layout(f'layers.{layer}.qkv', attention.qkv_width, d, resident)
            layout |= matrix_layout(f'layers.{layer}.o', d, attention.query_width, resident)
        if layer in spec.routed_layers:
            layout |= matrix_layout(router_matrix(layer), spec.feed_forward.experts.count, d,
                                    router_format(resident))
    if spec.core_attention:
        layout['final_norm'] = (np.float32, (d,))
    if spec.feed_forward.bias:
        layout |= {up_bias(layer): (np.float32, (spec.feed_forward.size,))
                   for layer in range(spec.layers)}
    if spec.positions.kind == 'learned':
        layout[POSITIONS] = (float_type(resident), (spec.max_context, d))
    return layout


def float_type(resident: str) -> type[np.floating]:
    """Of positions, and of keys and values where ONNX Runtime computes attention."""
    return np.float32 if resident == 'fp32' else np.float16


def layer_vectors(spec: ModelSpec, layer: int) -> dict[str, int]:
    """Names and widths of what the core's attention needs of a layer beside its sections."""
    d, attention = spec.hidden_size, spec.attention
    vectors = {'attention_norm': d, 'ffn_norm': d} if spec.norm.first else {}
    if spec.convolves(layer):
        return vectors | {'conv': d * spec.convolution.taps}
    if attention.bias:
        vectors['qkv_bias'] = attention.qkv_width
    if attention.output_bias:
        vectors['o_bias'] = d
    if attention.sinks:
        vectors['sinks'] = attention.heads
    if attention.qk_norm == 'head':
        vectors |= {'q_norm': attention.head_dim, 'k_norm': attention.head_dim}
    elif attention.qk_norm == 'width':
        vectors |= {'q_norm': attention.query_width, 'k_norm': attention.kv_width}
    if spec.norm.output:
        vectors |= {'attention_output_norm': d, 'ffn_output_norm': d}
    return vectors


def up_bias(layer: int) -> str:
    """The tensor added to what a layer's up rows give."""
    return f'up_bias.{layer}'


def router_matrix(layer: int) -> str:
    """A layer's router, which is no tensor of its attention."""
    return f'router.{layer}'


def router_format(resident: str) -> str:
    """Of routers beside attention in this format: what they choose is worth 8 bits."""
    return 'fp32' if resident == 'fp32' else 'q8'


def matrix_layout(name: str, rows: int, columns: int, resident: str) -> Layout:
    """One matrix [rows, columns]: quantised blocks and scales, or float32 [columns, rows]."""
    if resident == 'fp32':
        return {f'{name}.weight': (np.float32, (columns, rows))}
    bits, block = int(resident[1:]), block_of(resident, columns)
    layout = _quantised_layout(name, rows, columns, bits, block)
    if resident == 'q4':
        blocks = -(-columns // block)
        layout |= _quantised_layout(f'{name}.offsets', rows, blocks, 8, OFFSET_BLOCK)
    return layout


def matrix_tensors(name: str, matrix: NDArray[np.float32],
                   resident: str) -> dict[str, NDArray[Any]]:
    """The tensors that `matrix_layout` declares, for a float32 [rows, columns] matrix."""
    if resident == 'fp32':
        return {f'{name}.weight': np.ascontiguousarray(matrix.T)}
    quantised = quantise(matrix, resident)
    tensors = {f'{name}.data': quantised.data, f'{name}.scales': quantised.scales}
    if (offsets := quantised.offsets) is not None:
        tensors |= {f'{name}.offsets.data': offsets.data, f'{name}.offsets.scales': offsets.scales}
    return tensors


def _quantised_layout(name: str, rows: int, columns: int, bits: int, block: int) -> Layout:
    blocks = -(-columns // block)
    return {f'{name}.data': (np.uint8, (rows, blocks, block * bits // 8)),
            f'{name}.scales': (np.float32, (rows, blocks))}
