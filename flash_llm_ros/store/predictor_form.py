"""The forms that a layer's predictor may have, and the tensors of each."""

from dataclasses import dataclass

import numpy as np

from flash_llm_ros.checked_fields import check, check_choice, check_integers
from flash_llm_ros.model_spec import ModelSpec
from flash_llm_ros.store.resident_layout import Layout, matrix_layout

KINDS = ('low_rank', 'sketch')
SKETCH_BITS = (2, 4)
_FACTORS = 'q8'


@dataclass(frozen=True)
class PredictorForm:
    """How a predictor approximates the gate rows; ValueError on creation.

    low_rank: by two factors of rank `size`; sketch: by the rows themselves in `size` bits.
    """

    kind: str
    size: int

    def __post_init__(self) -> None:
        check_choice(self, 'kind', KINDS)
        check_integers(self, ['size'])
        check(self.kind != 'sketch' or self.size in SKETCH_BITS, 'size', self.size,
              f'{" or ".join(map(str, SKETCH_BITS))} bits, as of a sketch')

    @property
    def resident(self) -> str:
        """The format of its matrices."""
        return f'q{self.size}' if self.kind == 'sketch' else _FACTORS

    def matrices(self, rows: int, hidden_size: int) -> dict[str, tuple[int, int]]:
        """Its matrices, which the FFN's input goes through in this order: name -> shape."""
        if self.kind == 'sketch':
            return {'sketch': (rows, hidden_size)}
        return {'inner': (self.size, hidden_size), 'outer': (rows, self.size)}


def predictor_layout(spec: ModelSpec, forms: list[PredictorForm]) -> Layout:
    """Tensors of the predictors' file, for one form a layer."""
    tensors: Layout = {}
    for layer, form in enumerate(forms):
        for name, shape in form.matrices(spec.feed_forward.size, spec.hidden_size).items():
            tensors |= matrix_layout(f'predictors.{layer}.{name}', *shape, form.resident)
        tensors[f'predictors.{layer}.bias'] = (np.float32, (spec.feed_forward.size,))
    return tensors
