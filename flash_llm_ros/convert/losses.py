"""What a model's answers cost, in nats: losses of tokens, and divergences from other answers."""

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]


def log_softmax(logits: Array) -> Array:
    """Logarithms of probabilities, in place; [tokens, vocabulary]."""
    logits -= logits.max(axis=1, keepdims=True)
    logits -= np.log(np.exp(logits).sum(axis=1, keepdims=True))
    return logits


def divergence(reference: Array, ours: Array) -> NDArray[np.float64]:
    """KL divergence in nats, by token, of log probabilities [tokens, vocabulary]."""
    return (np.exp(reference) * (reference - ours)).sum(axis=1, dtype=np.float64)
