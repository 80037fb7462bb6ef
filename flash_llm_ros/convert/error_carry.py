"""Rounding whose errors make up for each other on the inputs that really occur.

A row's values are rounded one after the other, and what one misses is added to those behind it as
far as their inputs go along (GPTQ, arXiv 2210.17323; as here in 2307.13304, section 4).
"""

import numpy as np
from numpy.typing import NDArray

from flash_llm_ros.convert.input_statistics import Array, InputStatistics
from flash_llm_ros.engine import Engine

# Of the mean square of an input: for what a short text does not show of a model's inputs.
_RIDGE = 0.1


def head_carry(engine: Engine, tokens: NDArray[np.int64]) -> Array:
    """What `Int4Codec.encode` is to carry in the rows of the head, float32 [d, d].

    Of what the head is given where the model reads these tokens, in pieces of the context's length.
    """
    model, context = engine.model, engine.config.context_length
    statistics = InputStatistics(model.spec.hidden_size)
    for start in range(0, len(tokens), context):
        piece = tokens[start:start + context]
        for position in range(0, len(piece), model.chunk):
            part = piece[position:position + model.chunk]
            model.forward(part, position, dense=True)
            statistics.add(model.attention.final_norm(0, len(part)))
    return error_carry(statistics)


def error_carry(statistics: InputStatistics) -> Array:
    """Share [i, j] of the error of value i that value j behind it takes up, float32 [d, d].

    With a covariance C = V V^T of an upper triangular V, the error of rows E on these inputs is
    |E V|^2, whose column j is V[j, j] (E[j] + sum of E[i] V[i, j] / V[j, j] over i < j).
    """
    root = np.linalg.cholesky(statistics.covariance(_RIDGE)[::-1, ::-1])[::-1, ::-1]
    return np.ascontiguousarray(root / root.diagonal(), np.float32)
