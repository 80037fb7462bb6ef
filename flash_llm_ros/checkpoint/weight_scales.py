"""Scale factors between the blocks of a model, folded into its weights as they are read."""

from dataclasses import dataclass


@dataclass(frozen=True)
class WeightScales:
    """What a family multiplies with beside its weights."""

    embedding: float = 1.0              # what the embedding gives
    residual: float = 1.0               # what attention and feed-forward block add
    head: float = 1.0                   # what the output head is given

    def of(self, name: str, tied_embeddings: bool) -> float:
        """What the rows of a canonical tensor are multiplied with, so that nothing else need be.

        A head tied to the embedding is scaled with it, which the final norm takes back.
        """
        part = name.rpartition('.')[2]
        if part == 'embedding':
            return self.embedding
        if part in ('o', 'down', 'expert_down'):
            return self.residual
        if part == 'final_norm':
            return self.head / self.embedding if tied_embeddings else self.head
        return 1.0
