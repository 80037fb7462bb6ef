"""Predictors as they will be stored, and what they say of inputs."""

from typing import Any

from numpy.typing import NDArray

from flash_llm_ros.convert.ffn_weights import Array
from flash_llm_ros.store.block_quantisation import dequantise, quantise
from flash_llm_ros.store.predictor_form import PredictorForm
from flash_llm_ros.store.resident_layout import matrix_tensors


class Predictor:
    """A form and its float32 matrices; `scores` computes with what storing makes of them."""

    def __init__(self, form: PredictorForm, matrices: dict[str, Array], mean: Array,
                 gates: Array) -> None:
        """The `mean` input [d] gets the score `gates` [ffn]: nothing is wrong on average then.

        Rounding to 2 bits makes most of its error there.
        """
        self.form, self._matrices = form, matrices
        self._stored = [dequantise(quantise(matrix, form.resident), matrix.shape[1])
                        for matrix in matrices.values()]
        self._bias = gates - self._product(mean)

    def scores(self, x: Array) -> Array:
        """What the activation function is given, roughly; float32 [tokens, ffn]."""
        return self._product(x) + self._bias

    def tensors(self, layer: int) -> dict[str, NDArray[Any]]:
        """What goes into the predictors' file, in its order."""
        found: dict[str, NDArray[Any]] = {}
        for name, matrix in self._matrices.items():
            found |= matrix_tensors(f'predictors.{layer}.{name}', matrix, self.form.resident)
        return found | {f'predictors.{layer}.bias': self._bias}

    def _product(self, x: Array) -> Array:
        for matrix in self._stored:
            x = x @ matrix.T
        return x

    @property
    def bytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors(0).values())
