"""What the output head is given where the model reads a text."""

import numpy as np
from numpy.typing import NDArray

from flash_llm_ros.convert.input_statistics import Array, InputStatistics
from flash_llm_ros.engine import Engine

# Of the inputs' mean square: for what a short text does not show.
_RIDGE = 0.1


def head_inputs_root(engine: Engine, tokens: NDArray[np.int64]) -> Array:
    """What `RowCodec.encode` asks for, float32 [d, d], of these tokens in exact mode.

    They are read in pieces of the context's length; RAM does not grow with them.
    """
    model, context = engine.model, engine.config.context_length
    statistics = InputStatistics(model.spec.hidden_size)
    for start in range(0, len(tokens), context):
        piece = tokens[start:start + context]
        for position in range(0, len(piece), model.chunk):
            part = piece[position:position + model.chunk]
            model.forward(part, position, dense=True)
            statistics.add(model.attention.final_norm(0, len(part)))
    return np.ascontiguousarray(statistics.upper_root(_RIDGE), np.float32)
