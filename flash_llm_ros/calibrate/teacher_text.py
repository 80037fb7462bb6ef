"""Text that a teacher writes for its student, without any data (LLM-QAT, arXiv 2305.17888)."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
import torch
from torch import Tensor
from torch.nn import functional

from flash_llm_ros.calibrate.distillation import SiluBlocks
from flash_llm_ros.calibrate.torch_model import (
    MATRIX,
    FeedForward,
    KvCache,
    TorchModel,
    gated_weights,
)
from flash_llm_ros.checkpoint.checkpoint import Checkpoint

_SEQUENCES = 16         # written at once


@torch.no_grad()
def written_by(model: TorchModel, blocks: FeedForward, tokens: int, length: int, seed: int,
               progress: Callable[[int, int], None]) -> Tensor:
    """At least `tokens` tokens, int64 [sequences, length], the first of each any of the vocabulary.

    The others are drawn from what the model expects, at temperature 1.
    """
    random = torch.Generator().manual_seed(seed)
    found: list[Tensor] = []
    while (done := sum(part.numel() for part in found)) < tokens:
        rows = torch.randint(0, model.spec.vocab_size, (_SEQUENCES, 1), generator=random)
        cache = KvCache()
        while rows.shape[1] < length:
            last = model.run(rows[:, -1:], blocks, cache)[:, -1]
            weights = functional.softmax((last @ model.head.T).float(), 1)
            rows = torch.cat((rows, torch.multinomial(weights, 1, generator=random)), 1)
            progress(min(done + rows.numel(), tokens), tokens)
        found.append(rows)
    return torch.cat(found)


def write_text(teacher: Checkpoint, tokens: int, length: int,
               progress: Callable[[int, int], None]) -> NDArray[np.int64]:
    """The same, of a checkpoint."""
    blocks = SiluBlocks([gated_weights(teacher, layer, MATRIX)
                         for layer in range(teacher.spec.layers)])
    return written_by(TorchModel(teacher, length), blocks, tokens, length, 0, progress).numpy()
