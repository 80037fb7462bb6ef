"""Measures of how close the engine is to a reference: logits, divergence, perplexity."""

import numpy as np

from flash_llm_ros.engine import Engine


def engine_logits(engine: Engine, tokens: list[int], dense: bool = True) -> np.ndarray:
    """Logits of every position, float32 [tokens, vocabulary].

    `dense`: all neurons, in chunks. Otherwise token by token, as an answer is made.
    """
    model = engine.model
    step = model.chunk if dense else 1
    result = np.empty((len(tokens), model.spec.embedding.vocab_size), np.float32)
    for start in range(0, len(tokens), step):
        part = np.array(tokens[start:start + step], np.int64)
        model.forward(part, start, dense, result[start:start + len(part)])
    return result


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """In float64, row by row."""
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def mean_divergence(reference: np.ndarray, ours: np.ndarray) -> float:
    """Mean KL divergence of our next-token distributions from the reference's, in nats."""
    total = 0.0
    for a, b in zip(np.array_split(reference, 16), np.array_split(ours, 16), strict=True):
        p, q = log_softmax(a), log_softmax(b)
        total += float((np.exp(p) * (p - q)).sum())
    return total / len(reference)


def token_losses(logits: np.ndarray, tokens: list[int]) -> np.ndarray:
    """Negative log-likelihood of each token but the first, given those before it; float64."""
    following, found = np.array(tokens[1:]), []
    for start in range(0, len(following), 128):
        rows = log_softmax(logits[start:start + 128][:len(following) - start])
        found.append(-rows[np.arange(len(rows)), following[start:start + 128]])
    return np.concatenate(found)


def perplexity(logits: np.ndarray, tokens: list[int]) -> float:
    """exp of the mean negative log-likelihood of each token given those before it."""
    return float(np.exp(token_losses(logits, tokens).mean()))
