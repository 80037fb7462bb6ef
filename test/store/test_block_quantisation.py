"""Resident matrices: rounding bounds, and what ONNX Runtime makes of the bytes."""

from hypothesis import given, settings
from hypothesis import strategies as st
import numpy as np
import onnx
from onnx import TensorProto, numpy_helper
import pytest

from flash_llm_ros.onnx_runtime import ort
from flash_llm_ros.store.block_quantisation import (
    block_of,
    dequantise,
    quantise,
    relative_error,
)
from flash_llm_ros.store.graph_builder import ExternalData, GraphBuilder, value
from flash_llm_ros.store.resident_layout import matrix_layout, matrix_tensors


def computed_by_onnx_runtime(matrix: np.ndarray, resident: str, x: np.ndarray,
                             bias: np.ndarray | None = None) -> np.ndarray:
    """x @ matrix.T + bias by the nodes that a layer graph gets, activations in float32."""
    rows, columns = matrix.shape
    layout = matrix_layout('m', rows, columns, resident)
    g = GraphBuilder(resident, ExternalData('none', layout, dict.fromkeys(layout, (0, 0))))
    g.matmul('x', 'm', 'y', rows, columns, bias)
    model = onnx.load_from_string(g.model(
        'g', [value('x', TensorProto.FLOAT, [1, 'S', columns])],
        [value('y', TensorProto.FLOAT, [1, 'S', rows])]))
    tensors = matrix_tensors('m', matrix, resident)
    for tensor in model.graph.initializer:
        if tensor.name in tensors:
            tensor.CopyFrom(numpy_helper.from_array(tensors[tensor.name], tensor.name))
    for node in model.graph.node:
        for attribute in node.attribute:
            if attribute.name == 'accuracy_level':
                attribute.i = 1
    session = ort.InferenceSession(model.SerializeToString(),
                                   providers=['CPUExecutionProvider'])
    return session.run(None, {'x': x[None]})[0][0]


@pytest.mark.parametrize('resident', ['q8', 'q4'])
@pytest.mark.parametrize(('rows', 'columns', 'biased'), [
    (1, 64, False), (7, 96, True), (3, 100, True), (4, 1536, False)])
def test_onnx_runtime_reads_the_same_values(resident: str, rows: int, columns: int,
                                            biased: bool) -> None:
    random = np.random.default_rng(rows)
    matrix = (random.standard_normal((rows, columns)) + 0.3).astype(np.float32)
    bias = random.standard_normal(rows).astype(np.float32) if biased else None
    x = random.standard_normal((3, columns)).astype(np.float32)
    expected = x.astype(np.float64) @ dequantise(quantise(matrix, resident), columns).T
    np.testing.assert_allclose(computed_by_onnx_runtime(matrix, resident, x, bias),
                               expected if bias is None else expected + bias,
                               rtol=1e-4, atol=1e-4)


@settings(max_examples=150, deadline=None)
@given(data=st.data(), resident=st.sampled_from(['q8', 'q4']), rows=st.integers(1, 4),
       columns=st.integers(1, 130))
def test_rounding_error(data: st.DataObject, resident: str, rows: int, columns: int) -> None:
    """8 bits: half a step everywhere. 4 bits: no worse than rounding to 16 even steps."""
    magnitude = data.draw(st.sampled_from([1e-6, 0.02, 1.0, 3e4]))
    seed = data.draw(st.integers(0, 2 ** 32 - 1))
    matrix = (np.random.default_rng(seed).standard_t(2, (rows, columns)) * magnitude
              ).astype(np.float32)
    block = block_of(resident, columns)
    found = dequantise(quantise(matrix, resident), columns)
    for row in range(rows):
        # Offsets are rounded to 8 bits of the largest near them; none exceeds the peak.
        slack = np.abs(matrix[row]).max() / 100
        for start in range(0, columns, block):
            values = np.zeros(block)
            values[:columns - start] = matrix[row, start:start + block]
            there = found[row, start:start + block].astype(np.float64)
            error = np.zeros(block)
            error[:len(there)] = there - values[:len(there)]
            if resident == 'q8':
                assert np.abs(error).max() <= np.abs(values).max() / 127 * 0.51
            else:
                even = np.linspace(values.min(), values.max(), 16)
                plain = np.abs(values[:, None] - even).min(axis=1)
                assert (np.linalg.norm(error)
                        <= np.linalg.norm(plain) * 1.0001 + slack * np.sqrt(block))


@pytest.mark.parametrize('steps', [16, 14, 13])
def test_4_bits_keep_the_values_of_a_4_bit_source(steps: int) -> None:
    """Blocks of 32 with a scale and a minimum, as in GGUF's Q4_1 and Q4_K, come out as they are."""
    random = np.random.default_rng(steps)
    scale = random.uniform(0.5, 2, (8, 6, 1)) * 0.01
    least = -scale * random.uniform(4, 11, (8, 6, 1))
    values = random.integers(0, steps, (8, 6, 32))
    values[:, :, :2] = 0, steps - 1
    matrix = (values * scale + least).astype(np.float32).reshape(8, -1)
    assert relative_error(matrix, 'q4') < 5e-5
    noise = random.standard_normal(matrix.shape).astype(np.float32)
    assert relative_error(noise, 'q4') > 1e-3       # so that the bound above means something


@pytest.mark.parametrize('resident', ['q8', 'q4'])
def test_constant_blocks(resident: str) -> None:
    matrix = np.zeros((3, 64), np.float32)
    matrix[1, 40] = -3.0
    matrix[2] = 0.7
    np.testing.assert_allclose(dequantise(quantise(matrix, resident), 64), matrix,
                               rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(dequantise(quantise(matrix, resident), 64)[0], 0)
