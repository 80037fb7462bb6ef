"""Learned corrections in the engine: what they add, and where they are not used."""

from pathlib import Path
import re
import shutil

from generation_cases import ReferenceModel, answer, opened, thresholds
import numpy as np
import pytest
from recovery_cases import (
    SETTING,
    random_corrections,
    recovery_file,
    write_both_modes,
)
from safetensors.numpy import load_file
import torch
import yaml

from bench.quality.fidelity import engine_logits, log_softmax, token_losses
from flash_llm_ros.convert.measured_loss import LossMeter
from flash_llm_ros.engine import Engine, EngineConfig
from flash_llm_ros.engine.tail_correction import load_corrections
from flash_llm_ros.store.errors import ErrorCode, FlashLlmError
from flash_llm_ros.store.flash_store import FlashStore
from flash_llm_ros.store.neuron_reader import NeuronReader
from flash_llm_ros.store.recovery_files import publish_recovery

pytestmark = pytest.mark.timeout(120)
RANK = 5


@pytest.fixture(scope='module')
def plain(fp16_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both modes, nothing learned."""
    return write_both_modes(fp16_store, tmp_path_factory.mktemp('plain') / 'store')


@pytest.fixture(scope='module')
def learned(plain: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, with random corrections for sparsity 0.7 and share 0.8."""
    path = shutil.copytree(plain, tmp_path_factory.mktemp('learned') / 'store')
    publish_recovery(FlashStore.open(path), {'0.70': (SETTING, random_corrections(1, RANK))},
                     {'0.80': (SETTING, random_corrections(2, RANK))})
    return path


def logits_of(store: Path, dense: bool = False, **options: object) -> np.ndarray:
    engine = opened(store, **options)
    try:
        return engine_logits(engine, list(b'The keeper walks up two hundred steps.'), dense)
    finally:
        engine.close()


def block_output(engine: Engine, x: np.ndarray, dense: bool) -> np.ndarray:
    """What layer 1 adds."""
    out = np.zeros_like(x)
    engine.model.feed_forward.begin(dense, False)
    engine.model.feed_forward.run(0, x, np.zeros_like(x), dense)
    engine.model.feed_forward.run(1, x, out, dense)
    return out


def activations(store: Path, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """silu(gate) * up of layer 1, and its down rows; float64."""
    with NeuronReader(FlashStore.open(store)) as reader:
        gate, up = reader.bundles('gate_up', 1).swapaxes(0, 1).astype(np.float64)
        down = reader.bundles('down', 1)[:, 0].astype(np.float64)
    z = x @ gate.T
    return z / (1 + np.exp(-z)) * (x @ up.T), down


def correction(store: Path, prefix: str, x: np.ndarray, layer: int = 1) -> np.ndarray:
    tensors = load_file(recovery_file(store))
    inner, outer, mean = (tensors[f'{prefix}.{layer}.{part}'].astype(np.float64)
                          for part in ('inner', 'outer', 'mean'))
    return x @ inner.T @ outer.T + mean


@pytest.mark.parametrize(('core', 'down_reads'), [
    ('native', 'scattered'), ('native', 'stream'), ('numpy', 'scattered'), ('numpy', 'stream')])
def test_a_token_gets_what_float64_gives(learned: Path, core: str, down_reads: str) -> None:
    limit = thresholds(learned, '0.70')[1]
    engine = opened(learned, core, mode='sparse', sparsity=0.7, down_reads=down_reads)
    try:
        for seed in range(4):
            x = np.random.default_rng(seed).standard_normal((1, 64)).astype(np.float32)
            h, down = activations(learned, x)
            assert np.abs(np.abs(h) - limit).min() > 1e-6       # float32 decides as float64
            used = h * (np.abs(h) > limit)
            assert 0.5 < (used == 0).mean() < 0.9
            added = correction(learned, 'sparse.0.70', x)
            expected = used @ down + added
            found = block_output(engine, x, False)
            np.testing.assert_allclose(found, expected, atol=2e-3 * np.abs(expected).max())
            assert np.abs(added).max() > 0.2 * np.abs(expected).max()
            np.testing.assert_allclose(block_output(engine, x, True), h @ down,
                                       atol=2e-3 * np.abs(h @ down).max())
    finally:
        engine.close()


class CorrectedReference(ReferenceModel):
    """Adds them where thresholds leave something out: to tokens of the answer."""

    def __init__(self, checkpoint: Path, store: Path) -> None:
        self._store = store
        super().__init__(checkpoint)

    def _feed_forward(self, mlp: torch.nn.Module, index: int):
        plain = super()._feed_forward(mlp, index)

        def forward(x: torch.Tensor) -> torch.Tensor:
            out = plain(x)
            if self.thresholds is not None:
                out = out + torch.from_numpy(correction(
                    self._store, 'sparse.0.70', x.double().numpy(), index)).float()
            return out

        return forward


@pytest.mark.parametrize('core', ['native', 'numpy'])
def test_answers_are_those_of_transformers_with_the_same_corrections(
        fp16_store: Path, plain: Path, learned: Path, core: str) -> None:
    """Its prompt is dense and without them."""
    reference = CorrectedReference(fp16_store.parent / 'checkpoint', learned)
    limits, found = thresholds(learned, '0.70'), {}
    for store in (plain, learned):
        engine = opened(store, core, mode='sparse', sparsity=0.7)
        try:
            found[store] = answer(engine, 'Where is the harbour?', max_tokens=20)
        finally:
            engine.close()
    prompt = list(found[learned].prompt_tokens)
    assert list(found[learned].tokens) == reference.greedy(prompt, 20, limits)
    assert found[learned].tokens[0] == found[plain].tokens[0]
    assert found[learned].tokens != found[plain].tokens


@pytest.mark.parametrize('options', [
    {'mode': 'exact'}, {'mode': 'sparse', 'sparsity': 0.6}, {'mode': 'sparse', 'sparsity': 0.704},
    {'mode': 'sparse', 'sparsity': 0.7, 'whole_groups': True},
    {'mode': 'sparse', 'sparsity': 0.7, 'dense': True},
    {'mode': 'aggressive', 'neuron_share': 0.7}, {'mode': 'aggressive', 'neuron_share': 1.0}])
def test_where_they_are_not_for_nothing_changes(plain: Path, learned: Path, options: dict) -> None:
    np.testing.assert_array_equal(logits_of(learned, **options), logits_of(plain, **options))


@pytest.mark.parametrize('options', [{'mode': 'sparse', 'sparsity': 0.7},
                                     {'mode': 'aggressive', 'neuron_share': 0.8}])
def test_where_they_are_for_something_changes(plain: Path, learned: Path, options: dict) -> None:
    found, before = (logits_of(store, **options) for store in (learned, plain))
    assert np.abs(found - before).mean() > 0.1 * before.std()
    np.testing.assert_array_equal(found, logits_of(learned, **options, threads=2))


@pytest.mark.parametrize('prompt', [0, 70])
def test_a_meter_in_exact_mode_measures_what_mode_sparse_has(learned: Path, prompt: int) -> None:
    """Chunks of 64 tokens at once against tokens one by one; one chunk of a prompt is whole."""
    store = FlashStore.open(learned)
    piece = np.random.default_rng(6).integers(0, 256, 150)
    engine = opened(learned)
    try:
        meter = LossMeter(engine, [piece])
        measured = meter.compared(piece, meter.exact(piece), np.array(thresholds(learned, '0.70')),
                                  load_corrections(store, store.sparse_corrections(0.7)), prompt)
        exact = engine_logits(engine, piece.tolist())
    finally:
        engine.close()
    engine = opened(learned, mode='sparse', sparsity=0.7)
    try:
        ours, whole = np.empty_like(exact), 64 * (prompt // 64)
        if whole:
            engine.model.forward(piece[:whole], 0, True, ours[:whole])
        for place in range(whole, len(piece)):
            engine.model.forward(piece[place:place + 1], place, False, ours[place:place + 1])
    finally:
        engine.close()
    p, q = log_softmax(exact), log_softmax(ours)
    np.testing.assert_allclose(measured['divergences'], (np.exp(p) * (p - q)).sum(1), atol=2e-3)
    np.testing.assert_allclose(measured['losses'], token_losses(ours, piece.tolist()), atol=5e-3)
    assert measured['divergences'][whole:].mean() > 0.1
    assert np.abs(measured['divergences'][:whole]).max(initial=0) < 1e-5


@pytest.mark.parametrize('core', ['native', 'numpy'])
def test_aggressive_uses_them_in_place_of_the_stores(learned: Path, core: str) -> None:
    x = np.random.default_rng(4).standard_normal((3, 64)).astype(np.float32)
    manifest = yaml.safe_load((learned / 'manifest.yaml').read_text())
    width = manifest['aggressive']['shares']['0.80']['widths'][1]
    h, down = activations(learned, x)
    expected = h[:, :width] @ down[:width] + correction(learned, 'aggressive.0.80', x)
    engine = opened(learned, core, mode='aggressive', neuron_share=0.8)
    try:
        for dense in (True, False):
            np.testing.assert_allclose(block_output(engine, x, dense), expected,
                                       atol=2e-3 * np.abs(expected).max())
    finally:
        engine.close()


def needed(store: Path, **options: object) -> tuple[float, float]:
    """Of the memory plan, MB: all, and the row of corrections, 0 where there is none."""
    with pytest.raises(FlashLlmError) as refused:
        Engine.open(EngineConfig(store, 1, context_length=64, **options))
    assert refused.value.code is ErrorCode.BUDGET_TOO_SMALL
    row = re.search(r'\n  corrections +([\d.]+) MB', str(refused.value))
    return (float(re.search(r'needs at least ([\d.]+) MB', str(refused.value))[1]),
            float(row[1]) if row else 0.0)


def test_the_memory_plan_counts_them(plain: Path, tmp_path: Path) -> None:
    path = shutil.copytree(plain, tmp_path / 'store')
    wide = {'0.70': (SETTING, random_corrections(3, 600))}
    publish_recovery(FlashStore.open(path), wide, {'0.80': (SETTING, random_corrections(3, 1200))})
    tensors = load_file(recovery_file(path))
    size = {prefix: sum(tensor.nbytes for name, tensor in tensors.items()
                        if name.startswith(prefix)) / 1e6 for prefix in ('sparse', 'aggressive')}
    assert size['sparse'] > 0.9 and size['aggressive'] > 1.8
    sparse = {'mode': 'sparse', 'sparsity': 0.7}
    (before, none), (after, row) = needed(plain, **sparse), needed(path, **sparse)
    assert none == 0 and row == pytest.approx(size['sparse'], abs=0.01)
    assert after - before == pytest.approx(row, abs=0.02)
    assert needed(path, mode='sparse', sparsity=0.6) == needed(plain, mode='sparse', sparsity=0.6)
    leading = {'mode': 'aggressive', 'neuron_share': 0.8}
    assert needed(path, **leading)[1] == pytest.approx(size['aggressive'], abs=0.01)
    assert needed(path, mode='exact') == needed(plain, mode='exact')


@pytest.mark.parametrize(('options', 'words'), [
    ({'mode': 'sparse', 'sparsity': 0.7}, 'corrections that were learned for sparsity 0.7'),
    ({'mode': 'aggressive', 'neuron_share': 0.8}, '1.125 instead of 1.250 times'),
    ({'mode': 'sparse', 'sparsity': 0.6}, None), ({'mode': 'exact'}, None),
    ({'mode': 'aggressive', 'neuron_share': 0.7}, None)])
def test_the_log_says_what_is_used(learned: Path, options: dict, words: str | None) -> None:
    lines: list[str] = []
    Engine.open(EngineConfig(learned, 60_000_000, context_length=64, **options),
                lines.append).close()
    said = [line for line in lines if ' learned ' in line]
    assert len(said) == (words is not None) and all(words in line for line in said)
