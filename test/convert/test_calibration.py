"""Calibration: what is recorded, what the thresholds leave out, and what a predictor says."""

from pathlib import Path

from generation_cases import ReferenceModel, opened
import numpy as np
import pytest
from safetensors.numpy import load_file
import torch
import yaml

from flash_llm_ros.convert.low_rank import InputStatistics, LowRankFactors
from flash_llm_ros.convert.traces import record
from flash_llm_ros.engine.model.predictors import PredictorStack, at_sparsity
from flash_llm_ros.store.flash_store import FlashStore

TEXT = 'The robot turns left at the door, waits, and asks the next person for the way. ' * 9


@pytest.fixture(scope='module')
def recorded(fp16_store: Path, tmp_path_factory: pytest.TempPathFactory) -> list[np.ndarray]:
    """FFN inputs of each layer over 700 tokens, in two pieces of the context's 512."""
    engine = opened(fp16_store, 'numpy')
    traces = record(engine, engine.tokenize(TEXT)[:700], tmp_path_factory.mktemp('traces') / 'x',
                    lambda done, total: None)
    engine.close()
    return [traces.read(layer) for layer in range(3)]


def activations(checkpoint: Path, layer: int, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """abs(silu(gate) * up), float64 [tokens, ffn], and the norms of the down columns."""
    tensors = load_file(checkpoint / 'model.safetensors')
    gate, up, down = (tensors[f'model.layers.{layer}.mlp.{part}_proj.weight'].astype(np.float64)
                      for part in ('gate', 'up', 'down'))
    z = x @ gate.T
    return np.abs(z / (1 + np.exp(-z)) * (x @ up.T)), np.sqrt((down ** 2).sum(axis=0))


def test_traces_are_what_enters_the_feed_forward_blocks(fp16_store: Path,
                                                        recorded: list[np.ndarray]) -> None:
    reference = ReferenceModel(fp16_store.parent / 'checkpoint')
    seen: list[list[np.ndarray]] = [[], [], []]
    for layer, block in enumerate(reference.model.model.layers):
        block.post_attention_layernorm.register_forward_hook(
            lambda module, inputs, output, layer=layer: seen[layer].append(output[0].numpy()))
    engine = opened(fp16_store, 'numpy')
    tokens = torch.tensor([engine.tokenize(TEXT)[:700]])
    engine.close()
    with torch.no_grad():
        for piece in tokens.split(512, dim=1):
            reference.model(piece)
    for layer in range(3):
        assert recorded[layer].shape == (700, 64)
        np.testing.assert_allclose(recorded[layer], np.concatenate(seen[layer]), atol=2e-4,
                                   rtol=2 ** -11)


@pytest.mark.parametrize('sparsity', ['0.30', '0.50', '0.90'])
def test_thresholds_leave_out_their_share(fp16_store: Path, recorded: list[np.ndarray],
                                          sparsity: str) -> None:
    """On text that calibration never saw, so the share is near, not exact."""
    manifest = yaml.safe_load((fp16_store / 'manifest.yaml').read_text())
    for layer in range(3):
        found, _ = activations(fp16_store.parent / 'checkpoint', layer, recorded[layer])
        left_out = (found <= manifest['calibration']['thresholds'][sparsity][layer]).mean()
        assert left_out == pytest.approx(float(sparsity), abs=0.1)


def test_predictor_graphs_compute_their_formula(fp16_store: Path,
                                                recorded: list[np.ndarray]) -> None:
    store = FlashStore.open(fp16_store)
    predictors = PredictorStack(store, 1, 0.5)
    tensors = load_file(fp16_store / 'predictors.safetensors')

    def matrix(name: str) -> np.ndarray:
        scales = tensors[f'{name}.scales'].astype(np.float64)[:, :, None]
        return ((tensors[f'{name}.data'].astype(float) - 128) * scales).reshape(len(scales), -1)

    for layer in range(3):
        threshold = store.manifest.calibration.predictor_thresholds['0.50'][layer]
        inner, outer = (matrix(f'predictors.{layer}.{part}') for part in ('inner', 'outer'))
        agreed = []
        for x in recorded[layer][::50]:
            gate, up = np.split(outer @ (inner[:, :64] @ x.astype(np.float64)), 2)
            score = np.abs(gate / (1 + np.exp(-gate)) * up)
            agreed.append(predictors.wanted(layer, x).astype(bool) == (score > threshold))
        # ONNX Runtime rounds the activations to 8 bits, which moves scores near the threshold.
        assert np.mean(agreed) > 0.97


def test_predictors_find_most_of_the_contribution(fp16_store: Path,
                                                  recorded: list[np.ndarray]) -> None:
    """As good on other text as the manifest says of them; chance would find half."""
    store = FlashStore.open(fp16_store)
    predictors, calibration = PredictorStack(store, 1, 0.5), store.manifest.calibration
    for layer in range(3):
        x = recorded[layer][::10]
        sizes, norms = activations(fp16_store.parent / 'checkpoint', layer, x)
        found = sizes * norms * (sizes > calibration.thresholds['0.50'][layer])
        wanted = np.array([predictors.wanted(layer, row).copy() for row in x])
        recall = (found * wanted).sum() / found.sum()
        assert recall > 0.8
        assert recall == pytest.approx(calibration.predictors[layer].recall, abs=0.05)


@pytest.mark.parametrize('rank', [1, 4, 12])
def test_low_rank_factors_are_the_best_ones(rank: int) -> None:
    """Against the SVD of the outputs themselves, which no factors of that rank can beat."""
    random = np.random.default_rng(rank)
    weights = random.standard_normal((60, 24)).astype(np.float32)
    # Inputs that live in few directions, so that the plain SVD of the weights is far from best.
    inputs = (random.standard_normal((300, 24)) * np.geomspace(10, 0.1, 24)).astype(np.float32)
    statistics = InputStatistics(24)
    for part in np.array_split(inputs, 3):
        statistics.add(part)
    outer, inner = LowRankFactors(weights, statistics.root()).of_rank(rank)
    assert (outer.shape, inner.shape) == ((60, rank), (rank, 24))
    outputs = inputs.astype(np.float64) @ weights.T
    best = np.sqrt((np.linalg.svd(outputs, compute_uv=False)[rank:] ** 2).sum())
    error = np.linalg.norm(outputs - inputs @ inner.T @ outer.T)
    left, values, right = np.linalg.svd(weights.astype(np.float64))
    plain = inputs @ right[:rank].T @ (left[:, :rank] * values[:rank]).T
    assert best <= error * 1.0001 and error < 1.01 * best
    assert error < 0.9 * np.linalg.norm(outputs - plain)


def test_between_calibrated_sparsities() -> None:
    table = {'0.50': [2.0, 4.0], '0.60': [3.0, 8.0]}
    for sparsity, expected in ((0.5, [2, 4]), (0.55, [2.5, 6]), (0.25, [1, 2]), (0.0, [0, 0])):
        np.testing.assert_allclose(at_sparsity(table, sparsity), expected)
    np.testing.assert_allclose(at_sparsity({'0.00': [0.7, 0.8]}, 0.95), [0.7, 0.8])
