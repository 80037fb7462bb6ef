"""The ONNX predictor of a layer: approximate gate, comparison."""

import numpy as np
from onnx import TensorProto

from flash_llm_ros.model_spec import ModelSpec
from flash_llm_ros.store.graph_builder import ExternalData, GraphBuilder, value
from flash_llm_ros.store.predictor_form import PredictorForm


def predictor_graph(spec: ModelSpec, layer: int, form: PredictorForm,
                    data: ExternalData) -> bytes:
    """ffn_input [1, d] and threshold [1] float32 -> wanted uint8 [1, ffn].

    Wanted is whose score, what the activation function is given, is larger than the threshold
    (paper, section 3.2). `bias` is the block's own and what the form is wrong by on average.
    """
    g = GraphBuilder(form.resident, data)
    source = 'input'
    g.node('Unsqueeze', ['ffn_input', g.inline('token_axis', np.array([1], np.int64))], [source])
    for name, shape in form.matrices(spec.feed_forward.size, spec.hidden_size).items():
        g.matmul(source, f'predictors.{layer}.{name}', name, *shape)
        source = name
    g.node('Add', [source, g.external(f'predictors.{layer}.bias')], ['biased'])
    g.node('Squeeze', ['biased', 'token_axis'], ['score'])
    g.node('Greater', ['score', 'threshold'], ['wanted_bool'])
    g.node('Cast', ['wanted_bool'], ['wanted'], to=TensorProto.UINT8)
    return g.model(f'predictor_{layer}',
                   [value('ffn_input', TensorProto.FLOAT, [1, spec.hidden_size]),
                    value('threshold', TensorProto.FLOAT, [1])],
                   [value('wanted', TensorProto.UINT8, [1, spec.feed_forward.size])])
