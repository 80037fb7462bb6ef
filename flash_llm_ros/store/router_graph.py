"""The router of a layer of experts, a part of the layer's ONNX graph."""

import numpy as np
from onnx import TensorProto, ValueInfoProto

from flash_llm_ros.model_spec import ExpertsSpec
from flash_llm_ros.store.graph_builder import GraphBuilder, value
from flash_llm_ros.store.resident_layout import router_format

EXPERT_IDS, EXPERT_WEIGHTS = 'expert_ids', 'expert_weights'


def add_router(g: GraphBuilder, experts: ExpertsSpec, matrix: str, dim: int) -> None:
    """ffn_input [1, S, dim] -> expert_ids int64, expert_weights float32, both [1, S, active].

    The `active` highest of the softmax of all scores, which are divided by their sum where they
    are normalised: that is the softmax of their scores alone.
    """
    g.matmul('ffn_input', matrix, 'scores', experts.count, dim, resident=router_format(g.resident))
    g.node('Softmax', ['scores'], ['shares'], axis=-1)
    active = g.inline('active_experts', np.array([experts.active], np.int64))
    chosen = 'chosen' if experts.normalised else EXPERT_WEIGHTS
    g.node('TopK', ['shares', active], [chosen, EXPERT_IDS], axis=-1)
    if experts.normalised:
        last = g.inline('last_axis', np.array([-1], np.int64))
        g.node('ReduceSum', [chosen, last], ['chosen_together'])
        g.node('Div', [chosen, 'chosen_together'], [EXPERT_WEIGHTS])


def router_outputs(experts: ExpertsSpec) -> list[ValueInfoProto]:
    return [value(EXPERT_IDS, TensorProto.INT64, [1, 'S', experts.active]),
            value(EXPERT_WEIGHTS, TensorProto.FLOAT, [1, 'S', experts.active])]
