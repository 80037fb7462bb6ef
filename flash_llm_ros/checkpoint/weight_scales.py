"""Scale factors between the blocks of a model, folded into its weights as they are read."""

from dataclasses import dataclass
import math
from typing import Any

from flash_llm_ros.model_spec import ModelSpec


@dataclass(frozen=True)
class WeightScales:
    """What a family multiplies with beside its weights."""

    embedding: float = 1.0              # what the embedding gives
    residual: float = 1.0               # what attention and feed-forward block add
    head: float = 1.0                   # what the output head is given
    query: float = 1.0                  # queries, beside 1 / sqrt(head size)

    def of(self, name: str, spec: ModelSpec) -> float:
        """What the rows of a canonical tensor are multiplied with, so that nothing else need be.

        A head tied to the embedding is scaled with it, which the final norm takes back.
        """
        part = name.rpartition('.')[2]
        if part == 'embedding':
            return self.embedding
        if part in ('o', 'o_bias', 'down', 'down_bias', 'expert_down'):
            return self.residual
        if part in (('q', 'q_bias') if spec.attention.qk_norm == 'none' else ('q_norm',)):
            return self.query
        if part in ('final_norm', 'final_norm_bias'):
            return self.head / self.embedding if spec.embedding.tied else self.head
        return 1.0


def positive(metadata: dict[str, Any], key: str, default: float | None = None) -> float:
    """A setting; ValueError when it is no positive number."""
    value = metadata[key] if default is None else metadata.get(key, default)
    if type(value) not in (int, float) or not (math.isfinite(value) and value > 0):
        raise ValueError(f'{key} is {value!r}; it must be a positive number')
    return float(value)
