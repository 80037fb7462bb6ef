"""The router of a layer of experts, and what foresees it: ONNX graphs."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

from flash_llm_ros.model_spec import ExpertsSpec, ModelSpec
from flash_llm_ros.store.graph_builder import ExternalData, GraphBuilder, value
from flash_llm_ros.store.resident_layout import router_format, router_matrix
from flash_llm_ros.store.router_outputs import (
    EXPERT_IDS,
    EXPERT_WEIGHTS,
    LIKELY,
    SHARED_WEIGHT,
)

_NEVER = -1e30          # added to the scores of experts whose group was not chosen
Rows = Callable[[str], NDArray[np.float32]]      # a tensor by its canonical name


def router_graph(spec: ModelSpec, layer: int, resident: str, data: ExternalData, rows: Rows
                 ) -> bytes:
    """ffn_input [1, S, d] -> expert_ids int64, expert_weights float32, both [1, S, active].

    And shared_weight float32 [1, S, 1], where the block that every token uses has one.
    """
    g, experts, dim = GraphBuilder(resident, data), spec.feed_forward.experts, spec.hidden_size
    shares = _choose(g, spec, layer, rows, EXPERT_IDS)
    scaled = experts.scale != 1
    weights = ['chosen', *(['normalised'] if experts.normalised else []),
               *(['scaled'] if scaled else [])]
    weights[-1] = EXPERT_WEIGHTS
    steps = iter(weights)
    found = next(steps)
    g.node('GatherElements', [shares, EXPERT_IDS], [found], axis=-1)
    if experts.normalised:
        last = g.inline('last_axis', np.array([-1], np.int64))
        g.node('ReduceSum', [found, last], ['chosen_together'])
        together = 'chosen_together'
        if experts.corrected or experts.shares == 'sigmoid':    # all of them may be 0
            least = g.inline('least_sum', np.array(experts.least_sum, np.float32))
            g.node('Max' if experts.sum_clamped else 'Add', [together, least],
                   [together := 'together_above_0'])
        g.node('Div', [found, together], [found := next(steps)])
    if scaled:
        scale = g.inline('scale', np.array(experts.scale, np.float32))
        g.node('Mul', [found, scale], [next(steps)])
    if experts.shared_weighed:
        column = g.inline('shared_router', rows(f'layers.{layer}.shared_router')[:, None])
        g.node('MatMul', ['ffn_input', column], ['shared_score'])
        g.node('Sigmoid', ['shared_score'], [SHARED_WEIGHT])
    outputs = [value(EXPERT_IDS, TensorProto.INT64, [1, 'S', experts.active]),
               value(EXPERT_WEIGHTS, TensorProto.FLOAT, [1, 'S', experts.active])]
    if experts.shared_weighed:
        outputs.append(value(SHARED_WEIGHT, TensorProto.FLOAT, [1, 'S', 1]))
    return g.model(f'router_{layer}', [value('ffn_input', TensorProto.FLOAT, [1, 'S', dim])],
                   outputs)


def foresight_graph(spec: ModelSpec, layer: int, resident: str, data: ExternalData, rows: Rows
                    ) -> bytes:
    """ffn_input [1, S, d] of this layer -> likely int64 [1, S, active]: experts of the next one.

    The next layer's router is given this layer's input: what enters two layers in a row differs
    little. The likeliest comes first. Nothing is trained.
    """
    g, experts = GraphBuilder(resident, data), spec.feed_forward.experts
    _choose(g, spec, layer + 1, rows, LIKELY)
    return g.model(f'foresight_{layer}',
                   [value('ffn_input', TensorProto.FLOAT, [1, 'S', spec.hidden_size])],
                   [value(LIKELY, TensorProto.INT64, [1, 'S', experts.active])])


def _choose(g: GraphBuilder, spec: ModelSpec, layer: int, rows: Rows, ids: str) -> str:
    """`ids` int64 [1, S, active], the best expert first; returns the name of all shares."""
    experts = spec.feed_forward.experts
    bias = rows(f'layers.{layer}.router_bias') if experts.biased else None
    g.matmul('ffn_input', router_matrix(layer), 'scores', experts.count, spec.hidden_size, bias,
             resident=router_format(g.resident))
    if experts.shares == 'softmax':
        g.node('Softmax', ['scores'], ['shares'], axis=-1)
    else:
        _sigmoid(g)
    ranked = 'shares'
    if experts.corrected:
        correction = g.inline('correction', rows(f'layers.{layer}.router_correction'))
        g.node('Add', [ranked, correction], ['corrected'])
        ranked = 'corrected'
    if experts.groups > 1:
        ranked = _in_best_groups(g, experts, ranked)
    active = g.inline('active_experts', np.array([experts.active], np.int64))
    g.node('TopK', [ranked, active], ['best', ids], axis=-1)
    return 'shares'


def _sigmoid(g: GraphBuilder) -> None:
    """`shares` of `scores`. ONNX Runtime's own Sigmoid is half off at -16, and 0 from -18 on."""
    one, minus = (g.inline(name, np.array(number, np.float32))
                  for name, number in (('one', 1), ('minus', -1)))
    g.node('Mul', ['scores', minus], ['negative_scores'])
    g.node('Exp', ['negative_scores'], ['against'])
    g.node('Add', ['against', one], ['for_and_against'])
    g.node('Div', [one, 'for_and_against'], ['shares'])


def _in_best_groups(g: GraphBuilder, experts: ExpertsSpec, ranked: str) -> str:
    """The same scores [1, S, count], far below all others outside of the best groups."""
    apart = g.inline('groups', np.array([0, 0, experts.groups, -1], np.int64))
    last = g.inline('last_of_group', np.array([-1], np.int64))
    two, chosen = (g.inline(name, np.array([count], np.int64)) for name, count in
                   (('two', 2), ('active_groups', experts.active_groups)))
    g.node('Reshape', [ranked, apart], ['grouped'])
    g.node('TopK', ['grouped', two], ['two_best', 'two_best_ids'], axis=-1)
    g.node('ReduceSum', ['two_best', last], ['group_scores'], keepdims=0)
    g.node('TopK', ['group_scores', chosen], ['group_best', 'group_ids'], axis=-1)
    # Never for all groups, 0 for those that were chosen.
    nothing = g.inline('nothing', np.array(0, np.float32))
    g.node('Mul', ['group_scores', nothing], ['no_scores'])
    g.node('Add', ['no_scores', g.inline('never', np.array(_NEVER, np.float32))], ['all_never'])
    g.node('Mul', ['group_best', nothing], ['no_best'])
    g.node('ScatterElements', ['all_never', 'group_ids', 'no_best'], ['allowed'], axis=-1)
    g.node('Unsqueeze', ['allowed', last], ['allowed_experts'])
    g.node('Add', ['grouped', 'allowed_experts'], ['grouped_allowed'])
    together = g.inline('together', np.array([0, 0, -1], np.int64))
    g.node('Reshape', ['grouped_allowed', together], ['allowed_scores'])
    return 'allowed_scores'
