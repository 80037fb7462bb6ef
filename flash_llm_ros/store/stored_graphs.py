"""The ONNX graphs that a store is written with."""

from collections.abc import Iterator

from flash_llm_ros.model_spec import ModelSpec
from flash_llm_ros.store import flash_store as names
from flash_llm_ros.store.graph_builder import ExternalData
from flash_llm_ros.store.layer_graphs import final_graph, layer_graph
from flash_llm_ros.store.router_graph import Rows, foresight_graph, router_graph


def stored_graphs(spec: ModelSpec, resident: str, data: ExternalData, rows: Rows
                  ) -> Iterator[tuple[str, bytes]]:
    """Name and content of each: attention where the core does not compute it, routers of experts
    and what foresees them.
    """
    if not spec.core_attention:
        for layer in range(spec.layers):
            yield names.layer_graph(layer), layer_graph(spec, layer, resident, data, rows)
        yield names.FINAL_GRAPH, final_graph(spec, rows)
    for layer in spec.routed_layers:
        yield names.router_graph(layer), router_graph(spec, layer, resident, data, rows)
    for layer in spec.foreseeing_layers:
        yield names.predictor_graph(layer), foresight_graph(spec, layer, resident, data, rows)
