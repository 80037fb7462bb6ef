"""The ReLU model that the package carries, against transformers, and its predictors."""

import gzip
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load
from tokenizers import Tokenizer
import torch

from bench.quality.fidelity import engine_logits, perplexity
from bench.quality.held_out_text import held_out_text
from bench.quality.reference_model import load_reference, reference_logits
from flash_llm_ros.checkpoint.open import open_checkpoint
from flash_llm_ros.engine import Engine, EngineConfig

pytestmark = pytest.mark.timeout(600)
FFN = Path(__file__).parents[2] / 'resource/smollm2-135m-relu.ffn'
TOKENS = 500


class FatRelu(torch.nn.Module):
    """Counts its zeros."""

    def __init__(self, threshold: float) -> None:
        super().__init__()
        self.threshold, self.zeros = threshold, []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.zeros.append(float((x <= self.threshold).double().mean()))
        return torch.where(x > self.threshold, x, 0.0)


@pytest.fixture(scope='module')
def tokens(real_gguf: Path) -> list[int]:
    tokenizer = Tokenizer.from_str(open_checkpoint(real_gguf).tokenizer_json)
    return tokenizer.encode(held_out_text()).ids[:TOKENS]


@pytest.fixture(scope='module')
def expected(real_gguf: Path, tokens: list[int]) -> dict[str, np.ndarray | float]:
    """Logits of the original and of the ReLU model in float32, and the latter's zeros."""
    model = load_reference(real_gguf)
    original = reference_logits(model, tokens)
    stored = load(gzip.decompress(FFN.read_bytes()))
    relu = FatRelu(float(stored['relu_threshold'][0]))
    for index, layer in enumerate(model.model.layers):
        layer.mlp.act_fn = relu
        for part in ('gate', 'up', 'down'):
            name = f'layers.{index}.{part}'
            rows = stored[name] * stored[f'{name}.step'].astype(np.float32)[:, None]
            getattr(layer.mlp, f'{part}_proj').weight = torch.nn.Parameter(torch.from_numpy(rows))
    return {'original': original, 'relu': reference_logits(model, tokens),
            'zeros': float(np.mean(relu.zeros))}


def test_it_is_sparse_and_not_much_worse(expected: dict, tokens: list[int]) -> None:
    assert expected['zeros'] > 0.75
    assert perplexity(expected['relu'], tokens) < 1.25 * perplexity(expected['original'], tokens)


@pytest.mark.parametrize('mode', ['exact', 'gated'])
def test_the_engine_s_text_is_its_own(real_relu_store: Path, expected: dict, tokens: list[int],
                                      mode: str) -> None:
    """Of which the predictors lose next to nothing."""
    engine = Engine.open(EngineConfig(real_relu_store, 400_000_000, mode, context_length=1024,
                                      lock_memory=False))
    try:
        found = perplexity(engine_logits(engine, tokens, dense=mode == 'exact'), tokens)
        stats = engine.stats()
    finally:
        engine.close()
    wanted = perplexity(expected['relu'], tokens)
    assert found == pytest.approx(wanted, rel=0.02)
    if mode == 'gated':
        used = stats['active_neurons'] / stats['total_neurons']
        assert 0.5 * (1 - expected['zeros']) < used < 1.15 * (1 - expected['zeros'])
