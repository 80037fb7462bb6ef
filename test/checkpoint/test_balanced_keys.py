"""Keys with large biases, as Qwen2 has them: what is stored of them against transformers."""

from pathlib import Path

from family_checkpoints import VARIANTS, reference_of
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from tiny_checkpoint import converted

from bench.model.families import step_logits
from bench.quality.reference_model import reference_logits
from flash_llm_ros.checkpoint.open import open_checkpoint
from flash_llm_ros.engine import Engine, EngineConfig


@pytest.fixture(scope='module')
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Some values of keys are 1,000 times as large as others, and queries as small: the same model.

    Those that turn together, half a head apart, belong together.
    """
    folder = VARIANTS['qwen2'](tmp_path_factory.mktemp('biased') / 'checkpoint')
    weights = load_file(folder / 'model.safetensors')
    spec = open_checkpoint(folder).spec.attention
    rng = np.random.default_rng(0)
    for layer in range(2):
        sizes = 2.0 ** rng.integers(-5, 6, (spec.kv_heads, 1, spec.head_dim // 2))
        sizes = np.broadcast_to(sizes, (spec.kv_heads, 2, spec.head_dim // 2))
        for part, factors in (('k', sizes), ('q', (1 / sizes).repeat(2, 0))):
            for kind in ('weight', 'bias'):
                values = weights[f'model.layers.{layer}.self_attn.{part}_proj.{kind}']
                values *= factors.reshape(-1, *[1] * (values.ndim - 1))
    save_file(weights, folder / 'model.safetensors', {'format': 'pt'})
    return folder


def test_keys_of_8_bits_lose_no_more_than_even_ones(checkpoint: Path, tmp_path: Path) -> None:
    store = converted(checkpoint, tmp_path / 'store', neurons='fp16').path
    engine = Engine.open(EngineConfig(store, 40_000_000, lock_memory=False, context_length=64))
    tokens = list(range(20, 80))
    found = step_logits(engine, tokens)
    engine.close()
    expected = reference_logits(reference_of(checkpoint), tokens)
    assert np.square(found - expected).mean() < (1e-2 * expected.std()) ** 2


def test_products_of_queries_and_keys_are_what_they_were(checkpoint: Path) -> None:
    """In any part of the rows, and of numbers that turn together by any angle."""
    opened = open_checkpoint(checkpoint)
    attention = opened.spec.attention
    weights = load_file(checkpoint / 'model.safetensors')
    stored = {part: weights[f'model.layers.1.self_attn.{part}_proj.weight'].astype(np.float64)
              for part in 'qk'}
    found = {part: opened.rows(f'layers.1.{part}').astype(np.float64) for part in 'qk'}
    assert np.abs(found['k'] - stored['k']).max() > 0
    for part, rows in found.items():
        np.testing.assert_array_equal(opened.rows(f'layers.1.{part}', 3, 21), rows[3:21])
    half, groups = attention.head_dim // 2, attention.heads // attention.kv_heads

    def complex_heads(rows: np.ndarray) -> np.ndarray:
        heads = rows.reshape(-1, 2, half, rows.shape[1])
        return heads[:, 0] + 1j * heads[:, 1]

    angles = np.exp(1j * np.arange(half))[:, None]
    for turned in (1, angles):
        products = []
        for rows in (stored, found):
            keys = (turned * complex_heads(rows['k'])).repeat(groups, 0)
            products.append(np.einsum('hdi,hdj->hij', complex_heads(rows['q']).conj(), keys).real)
        np.testing.assert_allclose(*products, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('part', ['input_layernorm.weight', 'self_attn.k_proj.weight',
                                  'self_attn.k_proj.bias'])
def test_what_is_no_number_is_named(part: str, tmp_path: Path) -> None:
    """And not the queries, which come first and take part in it."""
    folder = VARIANTS['qwen2'](tmp_path / 'checkpoint')
    weights = load_file(folder / 'model.safetensors')
    weights[f'model.layers.1.{part}'].reshape(-1)[5] = np.nan
    save_file(weights, folder / 'model.safetensors', {'format': 'pt'})
    name = {'input_layernorm.weight': 'attention_norm', 'self_attn.k_proj.weight': 'k',
            'self_attn.k_proj.bias': 'k_bias'}[part]
    with pytest.raises(ValueError, match=rf'tensor layers\.1\.{name} holds NaN or infinity'):
        converted(folder, tmp_path / 'store', neurons='fp16')
