"""The router of a layer of experts, a part of the layer's ONNX graph, and what foresees it."""

import numpy as np
from onnx import TensorProto, ValueInfoProto

from flash_llm_ros.model_spec import ExpertsSpec, ModelSpec
from flash_llm_ros.store.graph_builder import ExternalData, GraphBuilder, value
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


def foresight_graph(spec: ModelSpec, layer: int, resident: str, data: ExternalData) -> bytes:
    """ffn_input [1, d] float32 of this layer -> likely int64 [1, active]: experts of the next one.

    The next layer's router is given this layer's input: what enters two layers in a row differs
    little. The likeliest comes first. Nothing is trained.
    """
    g, experts = GraphBuilder(resident, data), spec.feed_forward.experts
    axis = g.inline('token_axis', np.array([1], np.int64))
    g.node('Unsqueeze', ['ffn_input', axis], ['input'])
    g.matmul('input', f'layers.{layer + 1}.router', 'score_rows', experts.count, spec.hidden_size,
             resident=router_format(resident))
    g.node('Squeeze', ['score_rows', axis], ['scores'])
    g.node('TopK', ['scores', g.inline('ranks', np.array([experts.active], np.int64))],
           ['best', 'likely'], axis=-1)
    return g.model(f'foresight_{layer}',
                   [value('ffn_input', TensorProto.FLOAT, [1, spec.hidden_size])],
                   [value('likely', TensorProto.INT64, [1, experts.active])])
