"""The ONNX predictor of a layer: approximate gate (and up), activation, comparison."""

from dataclasses import dataclass

import numpy as np
from onnx import TensorProto

from flash_llm_ros.model_spec import ModelSpec
from flash_llm_ros.store.graph_builder import ExternalData, GraphBuilder, value
from flash_llm_ros.store.resident_layout import Layout, matrix_layout

KINDS = ('low_rank', 'trained', 'sketch')
SKETCH_BITS = (2, 4)
_FACTORS = 'q8'


@dataclass(frozen=True)
class PredictorForm:
    """How a predictor approximates gate (and up) rows; ValueError on creation.

    low_rank, trained: by two factors of rank `size`; sketch: by themselves in `size` bits.
    """

    kind: str
    size: int

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f'kind is {self.kind!r}; it must be one of {", ".join(KINDS)}')
        if self.kind == 'sketch' and self.size not in SKETCH_BITS:
            raise ValueError(f'size is {self.size}; a sketch has '
                             f'{" or ".join(map(str, SKETCH_BITS))} bits')
        if self.size < 1:
            raise ValueError(f'size is {self.size}; it must be at least 1')

    @property
    def resident(self) -> str:
        """The format of its matrices."""
        return f'q{self.size}' if self.kind == 'sketch' else _FACTORS

    def matrices(self, rows: int, hidden_size: int) -> dict[str, tuple[int, int]]:
        """Its matrices, which the FFN's input goes through in this order: name -> shape."""
        if self.kind == 'sketch':
            return {'sketch': (rows, hidden_size)}
        return {'inner': (self.size, hidden_size), 'outer': (rows, self.size)}


def predictor_layout(spec: ModelSpec, layout: str, forms: list[PredictorForm]) -> Layout:
    """Tensors of the predictors' file, for one form a layer.

    In the split layout the last matrix has gate and up rows.
    """
    tensors: Layout = {}
    for layer, form in enumerate(forms):
        for name, shape in form.matrices(outer_rows(spec, layout), spec.hidden_size).items():
            tensors |= matrix_layout(f'predictors.{layer}.{name}', *shape, form.resident)
        name = 'down_norm' if layout == 'split' else 'bias'
        tensors[f'predictors.{layer}.{name}'] = (np.float32, (spec.feed_forward.size,))
    return tensors


def outer_rows(spec: ModelSpec, layout: str) -> int:
    return spec.feed_forward.size * (2 if layout == 'split' else 1)


def predictor_graph(spec: ModelSpec, layout: str, layer: int, form: PredictorForm,
                    data: ExternalData) -> bytes:
    """ffn_input [1, d] and threshold [1] float32 -> wanted uint8 [1, ffn], score float32 [1, ffn].

    What scores higher than the threshold is wanted. Split layout: the size of silu(gate) * up,
    where the rows of up are scaled by the norms of the down columns. Bundled layout: what the
    activation function is given; `bias` is the block's own and what the form is wrong by on
    average.
    """
    g = GraphBuilder(form.resident, data)
    f, source = spec.feed_forward.size, 'input'
    g.node('Unsqueeze', ['ffn_input', g.inline('token_axis', np.array([1], np.int64))], [source])
    for name, shape in form.matrices(outer_rows(spec, layout), spec.hidden_size).items():
        g.matmul(source, f'predictors.{layer}.{name}', name, *shape)
        source = name
    if layout == 'bundled':
        g.node('Add', [source, g.external(f'predictors.{layer}.bias')], ['biased'])
        source = 'biased'
    if layout == 'split':
        g.node('Split', [source, g.inline('halves', np.array([f, f], np.int64))],
               ['gate', 'up'], axis=-1)
        g.node('Sigmoid', ['gate'], ['gate_sigmoid'])
        g.node('Mul', ['gate', 'gate_sigmoid'], ['gate_silu'])
        g.node('Mul', ['gate_silu', 'up'], ['signed_score'])
        g.node('Abs', ['signed_score'], ['scores'])
        source = 'scores'
    g.node('Squeeze', [source, 'token_axis'], ['score'])
    g.node('Greater', ['score', 'threshold'], ['wanted_bool'])
    g.node('Cast', ['wanted_bool'], ['wanted'], to=TensorProto.UINT8)
    return g.model(f'predictor_{layer}',
                   [value('ffn_input', TensorProto.FLOAT, [1, spec.hidden_size]),
                    value('threshold', TensorProto.FLOAT, [1])],
                   [value('wanted', TensorProto.UINT8, [1, f]),
                    value('score', TensorProto.FLOAT, [1, f])])
