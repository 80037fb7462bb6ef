"""SmolLM2-135M against transformers on the same dequantised weights: the promises."""

from pathlib import Path

import numpy as np
import pytest
from tiny_checkpoint import converted

from bench.quality.fidelity import engine_logits, mean_divergence
from bench.quality.held_out_text import held_out_text
from bench.quality.reference_model import load_reference, reference_choices, reference_logits
from flash_llm_ros.engine import Engine, EngineConfig, GenerationRequest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]
TOKENS = 600
PROMPTS = ('What is the capital of France?', 'Write a short poem about the sea.',
           'Explain how a quadrotor turns.', 'List five animals that can swim.',
           'def fibonacci(n):')
LOGIT_TOLERANCE = 0.1       # logits of this model deviate by about 6


def open_engine(store: Path, **options: object) -> Engine:
    return Engine.open(EngineConfig(store, 400_000_000, context_length=640, lock_memory=False,
                                    **options))


@pytest.fixture(scope='module')
def reference(real_gguf):
    return load_reference(real_gguf)


@pytest.fixture(scope='module')
def text(reference, real_store):
    """Tokens of text that calibration never saw, and the reference's logits."""
    engine = open_engine(real_store)
    tokens = engine.tokenize(held_out_text())[:TOKENS]
    engine.close()
    return tokens, reference_logits(reference, tokens)


def test_an_fp16_store_gives_the_same_greedy_tokens_and_logits(real_gguf, reference, text,
                                                               tmp_path):
    path = tmp_path / 'fp16.store'
    converted(real_gguf, path, neurons='fp16', calibrate=False)
    engine = open_engine(path, kv_cache='int16')
    try:
        for prompt in PROMPTS:
            generation = engine.start(GenerationRequest(prompt, max_tokens=64))
            for _ in generation:
                pass
            answer = generation.tokens
            assert len(answer) == 64 or answer[-1] in engine.model.spec.end_tokens
            assert answer == reference_choices(reference, generation.prompt_tokens, answer)
        tokens, logits = text
        ours = engine_logits(engine, tokens[:256])
    finally:
        engine.close()
    assert np.abs(ours - logits[:256]).max() < LOGIT_TOLERANCE


def test_a_default_store_diverges_by_less_than_a_hundredth_of_a_nat(real_store, text):
    tokens, expected = text
    engine = open_engine(real_store)
    try:
        found = engine_logits(engine, tokens)
    finally:
        engine.close()
    assert mean_divergence(expected, found) < 0.01
