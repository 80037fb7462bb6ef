"""Resident matrices: rounding bounds, and what ONNX Runtime makes of the bytes."""

from hypothesis import given, settings
from hypothesis import strategies as st
import numpy as np
import onnx
from onnx import TensorProto, helper
import onnxruntime as ort
import pytest

from flash_llm_ros.store.block_quantisation import (
    QuantisedMatrix,
    dequantise,
    quantise,
    quantised_shapes,
)

BITS = {'q8': (8, 64), 'q4': (4, 32)}


def computed_by_onnx_runtime(matrix: QuantisedMatrix, columns: int, resident: str) -> np.ndarray:
    """The matrix as MatMulNBits sees it: its product with the identity, in float32."""
    bits, block = BITS[resident]
    rows = len(matrix.data)
    node = helper.make_node('MatMulNBits', ['x', 'data', 'scales'], ['y'], domain='com.microsoft',
                            K=columns, N=rows, bits=bits, block_size=block, accuracy_level=1)
    graph = helper.make_graph(
        [node], 'g',
        [helper.make_tensor_value_info('x', TensorProto.FLOAT, [columns, columns]),
         helper.make_tensor_value_info('data', TensorProto.UINT8, matrix.data.shape),
         helper.make_tensor_value_info('scales', TensorProto.FLOAT, matrix.scales.shape)],
        [helper.make_tensor_value_info('y', TensorProto.FLOAT, [columns, rows])])
    model = helper.make_model(graph, ir_version=8, opset_imports=[
        helper.make_opsetid('', 17), helper.make_opsetid('com.microsoft', 1)])
    onnx.checker.check_model(model)
    session = ort.InferenceSession(model.SerializeToString(), providers=['CPUExecutionProvider'])
    return session.run(None, {'x': np.eye(columns, dtype=np.float32), 'data': matrix.data,
                              'scales': matrix.scales})[0].T


@pytest.mark.parametrize('resident', ['q8', 'q4'])
@pytest.mark.parametrize(('rows', 'columns'), [(1, 64), (5, 64), (7, 96), (16, 160), (3, 100)])
def test_onnx_runtime_reads_the_same_values(resident: str, rows: int, columns: int) -> None:
    matrix = np.random.default_rng(rows).standard_normal((rows, columns)).astype(np.float32)
    quantised = quantise(matrix, resident)
    assert (quantised.data.shape, quantised.scales.shape) == quantised_shapes(rows, columns,
                                                                              resident)
    np.testing.assert_allclose(dequantise(quantised, resident, columns),
                               computed_by_onnx_runtime(quantised, columns, resident),
                               rtol=1e-6, atol=1e-7)


@settings(max_examples=150, deadline=None)
@given(data=st.data(), resident=st.sampled_from(['q8', 'q4']), rows=st.integers(1, 4),
       columns=st.integers(1, 130))
def test_rounding_error(data: st.DataObject, resident: str, rows: int, columns: int) -> None:
    """Half a step, and a whole one where 4 bits must cut the end of the shorter side."""
    magnitude = data.draw(st.sampled_from([1e-6, 0.02, 1.0, 3e4]))
    seed = data.draw(st.integers(0, 2 ** 32 - 1))
    matrix = (np.random.default_rng(seed).standard_t(2, (rows, columns)) * magnitude
              ).astype(np.float32)
    bits, block = BITS[resident]
    found = dequantise(quantise(matrix, resident), resident, columns)
    for row in range(rows):
        for start in range(0, columns, block):
            part = slice(start, start + block)
            peak = np.abs(matrix[row, part]).max()
            step = peak / (127 if bits == 8 else 8)
            error = np.abs(found[row, part] - matrix[row, part])
            assert error.max() <= step * (0.51 if bits == 8 else 1.01)
            inner = np.abs(matrix[row, part]) <= peak * 7.4 / 8
            assert bits == 8 or not inner.any() or error[inner].max() <= step * 0.51


@pytest.mark.parametrize('resident', ['q8', 'q4'])
def test_zeros_stay_zeros(resident: str) -> None:
    matrix = np.zeros((2, 64), np.float32)
    matrix[1, 40] = -3.0
    np.testing.assert_array_equal(dequantise(quantise(matrix, resident), resident, 64), matrix)
