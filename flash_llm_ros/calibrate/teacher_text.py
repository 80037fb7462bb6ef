"""Text that a teacher writes for its student, without any data.

Half of it begins with any token of the vocabulary (LLM-QAT, arXiv 2305.17888). Where the model has
a chat template the other half are conversations, which begin with a user's turn that the model
writes as well (Magpie, arXiv 2406.08464): a student that never saw one ends its answers at once.
"""

from collections.abc import Callable, Sequence

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
from flash_llm_ros.engine.text.chat_template import ChatTemplate, Message
from flash_llm_ros.engine.text.tokenizer import TextTokenizer

_SEQUENCES = 16         # written at once
_QUESTION = 'the-question-stands-here'


@torch.no_grad()
def written_by(model: TorchModel, blocks: FeedForward, tokens: int, length: int, seed: int,
               progress: Callable[[int, int], None], beginning: Sequence[int] = ()) -> Tensor:
    """At least `tokens` tokens, int64 [sequences, length], drawn as the model expects them.

    Every other 16 sequences begin with any token of the vocabulary, the ones between with these
    `beginning` tokens, if there are any and they leave room.
    """
    random = torch.Generator().manual_seed(seed)
    begun = torch.tensor(beginning, dtype=torch.int64)
    found: list[Tensor] = []
    while (done := sum(part.numel() for part in found)) < tokens:
        if 0 < len(begun) < length and len(found) % 2 == 0:
            rows = begun.repeat(_SEQUENCES, 1)
        else:
            rows = torch.randint(0, model.spec.embedding.vocab_size, (_SEQUENCES, 1),
                                 generator=random)
        cache = KvCache()
        while rows.shape[1] < length:
            while cache.length < rows.shape[1]:
                last = model.run(rows[:, cache.length, None], blocks, cache)[:, -1]
            weights = functional.softmax((last @ model.head.T).float(), 1)
            rows = torch.cat((rows, torch.multinomial(weights, 1, generator=random)), 1)
            progress(min(done + rows.numel(), tokens), tokens)
        found.append(rows)
    return torch.cat(found)


def write_text(teacher: Checkpoint, tokens: int, length: int,
               progress: Callable[[int, int], None]) -> NDArray[np.int64]:
    """The same, of a checkpoint, whose chat template says how a conversation begins."""
    blocks = SiluBlocks([gated_weights(teacher, layer, MATRIX)
                         for layer in range(teacher.spec.layers)])
    return written_by(TorchModel(teacher, length), blocks, tokens, length, 0, progress,
                      user_turn(teacher)).numpy()


def user_turn(teacher: Checkpoint) -> list[int]:
    """The tokens before a user's first words; none where there is no chat template."""
    spec = teacher.spec
    tokenizer = TextTokenizer(teacher.tokenizer_json, spec.begin_token)
    template = ChatTemplate(teacher.chat_template, tokenizer.text_of(spec.begin_token),
                            tokenizer.text_of(spec.end_tokens[0] if spec.end_tokens else None))
    if not template.is_there:
        return []
    before, found, _ = template.render([Message('user', _QUESTION)]).partition(_QUESTION)
    return tokenizer.encode(before) if found else []
