"""What a store holds of a model's weights, in the order of its files, before it is rounded."""

from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from flash_llm_ros.model_spec import ModelSpec
from flash_llm_ros.store.geometry import CONVOLUTION_SECTIONS, EXPERT_SECTIONS, Section
from flash_llm_ros.store.resident_layout import (
    POSITIONS,
    float_type,
    layer_vectors,
    matrix_tensors,
    router_format,
    router_matrix,
    up_bias,
)

_ROWS_AT_ONCE = 4096
Tensors = Iterator[tuple[str, NDArray[Any]]]


class Rows(Protocol):
    """Rows [start, stop) of a tensor by its canonical name, float32."""

    def __call__(self, name: str, start: int = 0, stop: int | None = None
                 ) -> NDArray[np.float32]: ...


def bundles(spec: ModelSpec, rows: Rows, section: Section, copy: int
            ) -> Iterator[NDArray[np.float32]]:
    """float32 [bundles, rows, row values] of a section, some thousand bundles or an expert at once.
    """
    prefix = f'layers.{section.layer}'
    if section.name in EXPERT_SECTIONS:
        names = section.name.removeprefix('expert_').split('_')
        parts = [rows(f'{prefix}.expert_{name}', copy, copy + 1)[0] for name in names]
        if section.codec.biased:
            biases = [rows(f'{prefix}.expert_{name}_bias', copy, copy + 1)[0] for name in names]
            parts = list(map(np.column_stack, zip(parts, biases, strict=True)))
        yield np.stack(parts, axis=1)
        return
    columns = rows(f'{prefix}.down').T if section.name == 'bundle' else None
    for start in range(0, section.bundles, _ROWS_AT_ONCE):
        stop = min(start + _ROWS_AT_ONCE, section.bundles)
        parts = []
        if section.name in ('gate_up', 'bundle'):
            if spec.feed_forward.gated:
                parts.append(rows(f'{prefix}.gate', start, stop))
            parts.append(rows(f'{prefix}.up', start, stop))
        if columns is not None:
            parts.append(columns[start:stop])
        if section.name in ('o', 'down', *CONVOLUTION_SECTIONS):
            parts.append(rows(f'{prefix}.{section.name}', start, stop))
        if section.name == 'qkv':
            parts.append(_qkv(rows, section.layer)[start:stop])
        if section.name in ('embedding', 'head'):
            parts.append(rows(section.name, start, stop))
        yield np.stack(parts, axis=1)


def layer_tensors(spec: ModelSpec, rows: Rows, resident: str, layer: int) -> Tensors:
    """A layer's tensors of resident.safetensors, rounded already."""
    prefix = f'layers.{layer}'
    if spec.core_attention:
        for name in layer_vectors(spec, layer):
            yield f'{prefix}.{name}', (_qkv(rows, layer, '_bias') if name == 'qkv_bias' else
                                       rows(f'{prefix}.{name}').ravel())
    else:
        yield from matrix_tensors(f'{prefix}.qkv', _qkv(rows, layer), resident).items()
        yield from matrix_tensors(f'{prefix}.o', rows(f'{prefix}.o'), resident).items()
    if layer in spec.routed_layers:
        yield from matrix_tensors(router_matrix(layer), rows(f'{prefix}.router'),
                                  router_format(resident)).items()


def _qkv(rows: Rows, layer: int, suffix: str = '') -> NDArray[np.float32]:
    """Queries', keys' and values' matrices or biases, one behind the other."""
    return np.concatenate([rows(f'layers.{layer}.{part}{suffix}') for part in 'qkv'])


def model_tensors(spec: ModelSpec, rows: Rows, resident: str) -> Tensors:
    """Those behind the layers'."""
    if spec.core_attention:
        yield 'final_norm', rows('final_norm')
    if spec.feed_forward.bias:
        for layer in range(spec.layers):
            yield up_bias(layer), rows(f'layers.{layer}.up_bias')
    if spec.positions.kind == 'learned':
        first = spec.positions.offset
        table = rows('positions', first, first + spec.max_context)
        yield POSITIONS, table.astype(float_type(resident))
