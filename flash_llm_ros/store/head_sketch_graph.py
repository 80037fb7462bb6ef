"""The ONNX graph of the output head's sketch: two factors of low rank."""

from onnx import TensorProto

from flash_llm_ros.model_spec import ModelSpec
from flash_llm_ros.store.graph_builder import ExternalData, GraphBuilder, value
from flash_llm_ros.store.resident_layout import Layout, matrix_layout

FORMAT = 'q8'


def head_sketch_layout(spec: ModelSpec, rank: int) -> Layout:
    return {**matrix_layout('head.inner', rank, spec.hidden_size, FORMAT),
            **matrix_layout('head.outer', spec.embedding.vocab_size, rank, FORMAT)}


def head_sketch_graph(spec: ModelSpec, rank: int, data: ExternalData) -> bytes:
    """normed [1, d] float32 -> score float32 [1, vocabulary], which estimates the logits."""
    g = GraphBuilder(FORMAT, data)
    g.matmul('normed', 'head.inner', 'inner', rank, spec.hidden_size)
    g.matmul('inner', 'head.outer', 'score', spec.embedding.vocab_size, rank)
    return g.model('head_sketch', [value('normed', TensorProto.FLOAT, [1, spec.hidden_size])],
                   [value('score', TensorProto.FLOAT, [1, spec.embedding.vocab_size])])
