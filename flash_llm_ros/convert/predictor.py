"""Predictors as they will be stored, and what they say of inputs."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from flash_llm_ros.convert.ffn_weights import Array, FfnWeights
from flash_llm_ros.model_spec import ModelSpec
from flash_llm_ros.store.block_quantisation import dequantise, quantise
from flash_llm_ros.store.predictor_graph import PredictorForm
from flash_llm_ros.store.resident_layout import matrix_tensors


class Predictor:
    """A form and its float32 matrices; `scores` computes with what storing makes of them."""

    def __init__(self, form: PredictorForm, matrices: dict[str, Array], layout: str,
                 spec: ModelSpec, bias: Array | None = None) -> None:
        """`bias` [ffn]: added to the scores, where the block has one; bundled layout only."""
        self.form, self._matrices, self._layout, self._spec = form, matrices, layout, spec
        self._stored = [dequantise(quantise(matrix, form.resident), matrix.shape[1])
                        for matrix in matrices.values()]
        self._bias = np.zeros(spec.feed_forward.size, np.float32) if bias is None else bias

    def centre(self, x: Array, scores: Array) -> None:
        """Give the mean input `x` [d] these scores [ffn]: nothing is wrong on average then.

        Rounding to 2 bits makes most of its error there.
        """
        self._bias = scores - self._product(x)

    def scores(self, x: Array) -> Array:
        """float32 [tokens, ffn]."""
        found = self._product(x)
        if self._layout == 'split':
            gate, up = np.split(found, 2, axis=1)
            return np.abs(self._spec.feed_forward.activate(gate) * up)
        return found + self._bias

    def tensors(self, layer: int) -> dict[str, NDArray[Any]]:
        """What goes into the predictors' file, in its order."""
        found: dict[str, NDArray[Any]] = {}
        for name, matrix in self._matrices.items():
            found |= matrix_tensors(f'predictors.{layer}.{name}', matrix, self.form.resident)
        if self._layout == 'bundled':
            found[f'predictors.{layer}.bias'] = self._bias
        return found

    def _product(self, x: Array) -> Array:
        for matrix in self._stored:
            x = x @ matrix.T
        return x

    @property
    def bytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors(0).values())


def predicted_rows(weights: FfnWeights, layout: str) -> Array:
    """What a predictor approximates: float32 [gate and scaled up rows, or gate rows, d]."""
    if layout == 'bundled':
        return np.ascontiguousarray(weights.gate)
    return np.concatenate([weights.gate, weights.up * weights.down_norm[:, None]])
