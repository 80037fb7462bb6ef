"""Corrections that are trained: blocks against float64, and what training changes, and what not."""

from pathlib import Path

import numpy as np
import pytest
from recovery_cases import quiet, random_corrections, write_planted_tail
import torch
from transformers import LlamaForCausalLM

from flash_llm_ros.calibrate.corrected_blocks import LeadingBlocks, SparseBlocks
from flash_llm_ros.calibrate.distillation import SiluBlocks
from flash_llm_ros.calibrate.self_distillation import SelfDistillation
from flash_llm_ros.calibrate.store_tensors import StoreTensors
from flash_llm_ros.calibrate.tail_correction import LowRankMap
from flash_llm_ros.calibrate.teacher_text import written_by
from flash_llm_ros.calibrate.torch_model import MATRIX, GatedWeights, TorchModel, gated_weights
from flash_llm_ros.convert.conversion import ConversionOptions, convert
from flash_llm_ros.convert.perplexity_growth import Growth

pytestmark = pytest.mark.timeout(120)
LENGTH = 32


@pytest.fixture(autouse=True, scope='module')
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope='module')
def planted(tmp_path_factory: pytest.TempPathFactory) -> StoreTensors:
    folder = tmp_path_factory.mktemp('planted')
    return StoreTensors(convert(write_planted_tail(folder / 'checkpoint'), folder / 'store',
                                ConversionOptions(neurons='fp16', most_tokens=512), quiet))


@pytest.fixture(scope='module')
def weights(planted: StoreTensors) -> list[GatedWeights]:
    return [gated_weights(planted, layer, MATRIX) for layer in range(3)]


@pytest.fixture(scope='module')
def model(planted: StoreTensors) -> TorchModel:
    return TorchModel(planted, LENGTH)


@pytest.fixture(scope='module')
def text(model: TorchModel, weights: list[GatedWeights]) -> np.ndarray:
    """Of the model itself, so that whatever is left out costs something; 96 pieces and 32."""
    return written_by(model, SiluBlocks(weights), 4096, LENGTH, 1, lambda *_: None).numpy()


@pytest.fixture(scope='module')
def limits(planted: StoreTensors) -> list[np.ndarray]:
    """That leave the planted neurons out, and little else."""
    return [np.full(256, limit, np.float32) for limit in (0.011, 0.012, 0.0095)]


def nothing_yet(seed: int = 0, rank: int = 8) -> list[LowRankMap]:
    return [LowRankMap(one.inner, np.zeros_like(one.outer), np.zeros_like(one.mean))
            for one in random_corrections(seed, rank)]


@pytest.mark.parametrize('mode', ['sparse', 'leading'])
def test_blocks_against_float64(planted: StoreTensors, weights: list[GatedWeights], mode: str
                                ) -> None:
    start, widths = random_corrections(5, size=0.1), (40, 256, 200)
    x = torch.randn(2, 50, 64, generator=torch.Generator().manual_seed(1)).to(MATRIX)
    found_limits = [np.random.default_rng(layer).uniform(0, 0.2, 256).astype(np.float32)
                    for layer in range(3)]
    blocks = (SparseBlocks(weights, start, found_limits) if mode == 'sparse' else
              LeadingBlocks(weights, start, widths))
    for layer in range(3):
        gate, up, down = (planted.rows(f'layers.{layer}.{part}').astype(np.float64)
                          for part in ('gate', 'up', 'down'))
        given = x.double().numpy()
        z = given @ gate.T
        h = z / (1 + np.exp(-z)) * (given @ up.T)
        whole = h @ down.T
        if mode == 'sparse':
            h[np.abs(h) <= found_limits[layer]] = 0
        else:
            h[..., widths[layer]:] = 0
        correction = given @ start[layer].inner.T @ start[layer].outer.T + start[layer].mean
        expected = h @ down.T + correction
        error = np.abs(blocks(layer, x).detach().float().numpy() - expected)
        assert error.mean() < 0.02 * expected.std()         # bfloat16
        if (mode, layer) != ('leading', 1):
            assert np.abs(whole + correction - expected).mean() > 0.1 * expected.std()
    for ours, theirs in zip(blocks.corrections(), start, strict=True):
        for part, other in zip(ours, theirs, strict=True):
            np.testing.assert_array_equal(part, other)


def test_losses_are_those_of_transformers(planted: StoreTensors, model: TorchModel,
                                          weights: list[GatedWeights], text: np.ndarray) -> None:
    reference = LlamaForCausalLM.from_pretrained(planted.path.parent / 'checkpoint',
                                                 dtype=torch.float32).eval()
    pieces = torch.from_numpy(text[:3])
    with torch.no_grad():
        expected = torch.nn.functional.cross_entropy(
            reference(pieces).logits[:, :-1].flatten(0, 1), pieces[:, 1:].flatten(),
            reduction='none').numpy()
    training = SelfDistillation(model, SiluBlocks(weights), text[:1], text[:3])
    for blocks in (None, LeadingBlocks(weights, nothing_yet(), (256, 256, 256))):
        found = training.losses(blocks)
        assert found.shape == expected.shape == (3 * (LENGTH - 1),)
        assert np.abs(found - expected).mean() < 0.03 * expected.std()


@torch.no_grad()
def divergence(model: TorchModel, whole: SiluBlocks, blocks: SparseBlocks,
               pieces: np.ndarray) -> float:
    """Nats a token, in float64 from the logits."""
    theirs, ours = ((model.run(torch.from_numpy(pieces), which).double() @ model.head.double().T)
                    .log_softmax(-1).numpy() for which in (whole, blocks))
    return float((np.exp(theirs) * (theirs - ours)).sum(-1).mean())


def test_training_learns_what_is_left_out(model: TorchModel, weights: list[GatedWeights],
                                          text: np.ndarray, limits: list[np.ndarray],
                                          tmp_path: Path) -> None:
    whole, blocks = SiluBlocks(weights), SparseBlocks(weights, nothing_yet(), limits)
    frozen = [tensor for layer, one in zip(model._layers, weights, strict=True)
              for tensor in (*vars(layer).values(), *vars(one).values()) if tensor is not None]
    frozen += [model.embedding, model.head, model._final_norm]
    copies = [tensor.clone() for tensor in frozen]
    training = SelfDistillation(model, whole, text[:96], text[96:])
    exact = training.losses(None)

    def measured() -> tuple[float, float]:
        return (divergence(model, whole, blocks, text[96:]),
                Growth.of(training.losses(blocks), exact).nats)

    before, seen = measured(), []
    training.train(blocks, 1e-2, tmp_path / 'state.pt', lambda *done: seen.append(done))
    after = measured()
    assert seen == [(step + 1, 96) for step in range(96)]
    assert before[0] > 0.2 and before[1] > 0.2
    assert after[0] < 0.35 * before[0] and after[1] < 0.35 * before[1]

    for tensor, copy in zip(frozen, copies, strict=True):
        assert torch.equal(tensor, copy) and tensor.grad is None and not tensor.requires_grad
    assert {name for name, _ in blocks.named_parameters()} == {
        f'{part}.{layer}' for part in ('inner', 'outer', 'mean') for layer in range(3)}
    for ours, start in zip(blocks.corrections(), nothing_yet(), strict=True):
        for part, other in zip(ours, start, strict=True):
            assert part.dtype == np.float32 and part.shape == other.shape
            assert np.mean(part != other) > 0.95


class Interrupted(Exception):
    """What a test raises in the middle of training."""


@pytest.mark.parametrize('saving', [0.0, 1e9], ids=['saved', 'not saved'])
def test_an_interrupted_training_goes_on_as_if_it_had_not_been(
        model: TorchModel, weights: list[GatedWeights], text: np.ndarray,
        limits: list[np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
        saving: float) -> None:
    monkeypatch.setattr('flash_llm_ros.calibrate.self_distillation._SAVE_SECONDS', saving)
    training = SelfDistillation(model, SiluBlocks(weights), text[:16], text[96:])
    found = []
    for state, stops in (('whole.pt', ()), ('cut.pt', (5, 11))):
        for stop in (*stops, None):
            blocks, seen = SparseBlocks(weights, nothing_yet(), limits), []

            def progress(done: int, total: int, seen: list[int] = seen,
                         stop: int | None = stop) -> None:
                seen.append(done)
                if done == stop:
                    raise Interrupted

            try:
                training.train(blocks, 1e-2, tmp_path / state, progress)
            except Interrupted:
                assert stop == seen[-1]
        found.append(blocks.corrections())
    assert seen == list(range(12 if saving == 0 else 1, 17))
    for ours, theirs in zip(*found, strict=True):
        for part, other in zip(ours, theirs, strict=True):
            np.testing.assert_array_equal(part, other)
    training.train(blocks, 1e-2, tmp_path / 'cut.pt', lambda *_: pytest.fail('all was done'))
    assert sorted(path.name for path in tmp_path.iterdir()) == ['cut.pt', 'whole.pt']
