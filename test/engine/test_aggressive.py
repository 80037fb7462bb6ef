"""Mode aggressive: orders, corrections and allocations against brute force, a store end to end."""

from dataclasses import replace
from itertools import product
from pathlib import Path
import subprocess
import sys

import numpy as np
import pytest

from flash_llm_ros.calibrate.head_factors import head_factors
from flash_llm_ros.calibrate.ordered_store import OrderOptions, order_store
from flash_llm_ros.calibrate.share_allocation import allocate
from flash_llm_ros.calibrate.tail_correction import RidgeInputs
from flash_llm_ros.convert.neuron_order import by_coactivation, by_contribution, by_frequency
from flash_llm_ros.engine import Engine, EngineConfig, GenerationRequest
from flash_llm_ros.store.errors import ErrorCode, FlashLlmError
from flash_llm_ros.store.flash_store import FlashStore
from flash_llm_ros.store.geometry import (
    LeadingGeometry,
    model_sections,
    plan_geometry,
)
from flash_llm_ros.store.neuron_reader import NeuronReader
from flash_llm_ros.store.tensor_file import TensorFile

TEXT = ('The harbour master writes down every boat that comes in, its length and what it carries. '
        'In winter the light is lit at four, and the keeper walks up two hundred steps. ')


def test_orders_are_those_of_brute_force():
    random = np.random.default_rng(1)
    active = random.random((200, 24)) < random.random(24)
    counts = active.sum(axis=0)
    assert by_frequency(active).tolist() == sorted(range(24), key=lambda n: (-counts[n], n))
    together = active.T.astype(int) @ active.astype(int)
    rank = {n: place for place, n in enumerate(by_frequency(active).tolist())}
    chain = [min(range(24), key=lambda n: rank[n])]
    while len(chain) < 24:
        rest = [n for n in range(24) if n not in chain]
        chain.append(max(rest, key=lambda n: (together[chain[-1], n], -rank[n])))
    assert by_coactivation(active).tolist() == chain
    squares, norms = random.random(24), random.random(24)
    expected = sorted(range(24), key=lambda n: -squares[n] ** 0.5 * norms[n])
    assert by_contribution(squares, norms).tolist() == expected


def test_a_correction_is_the_best_of_its_rank():
    """Beside the closed form in float64: the SVD of the whitened ridge solution."""
    random = np.random.default_rng(2)
    x = (random.standard_normal((500, 20)) * np.linspace(0.1, 3, 20) + 1).astype(np.float32)
    target = (x @ random.standard_normal((20, 20)) + 5 + random.standard_normal((500, 20))
              ).astype(np.float32)
    found = RidgeInputs(x).fit(target, 4)(x)
    a, b = x.astype(np.float64), target.astype(np.float64)
    a, b = a - a.mean(0), b - b.mean(0)
    gram = a.T @ a
    gram += 1e-2 * np.trace(gram) / 20 * np.eye(20)
    root = np.linalg.cholesky(gram)
    full = np.linalg.solve(gram, a.T @ b)
    _, _, right = np.linalg.svd(root.T @ full)
    best = a @ full @ right[:4].T @ right[:4] + target.mean(0)
    np.testing.assert_allclose(found, best, atol=2e-3 * np.abs(best).max())


def test_an_allocation_loses_the_least_where_losses_are_convex():
    left_out, total = (0.0, 0.1, 0.2, 0.3, 0.4), 0.2
    scale = np.array([1.0, 3.0, 0.2, 5.0])
    losses = scale[:, None] * np.array(left_out) ** 2
    steps = allocate(losses, left_out, total)
    assert np.mean([left_out[step] for step in steps]) >= total - 1e-9
    found = sum(losses[layer, step] for layer, step in enumerate(steps))
    least = min(sum(losses[layer, step] for layer, step in enumerate(choice))
                for choice in product(range(5), repeat=4)
                if np.mean([left_out[step] for step in choice]) >= total - 1e-9)
    assert found == pytest.approx(least)
    with pytest.raises(ValueError, match=r'total is 0\.5'):
        allocate(losses, left_out, 0.5)


def test_a_head_sketch_of_full_rank_is_the_head():
    random = np.random.default_rng(3)
    head = random.standard_normal((100, 16)).astype(np.float32)
    normed = random.standard_normal((300, 16)).astype(np.float32)

    def error(rank: int) -> float:
        inner, outer = head_factors(lambda: iter(np.array_split(head, 7)), normed, rank)
        return float(np.square(normed @ inner.T @ np.concatenate(list(outer)).T
                               - normed @ head.T).mean())

    assert error(16) < 1e-6
    covariance = normed.T.astype(np.float64) @ normed / 300
    sizes = np.linalg.svd(head @ np.linalg.cholesky(covariance), compute_uv=False)
    assert error(6) == pytest.approx((sizes[6:] ** 2).sum() / 100, rel=0.02)


def test_a_leading_geometry_keeps_the_places_of_the_whole():
    whole = plan_geometry(64, 'int8', model_sections('split', 2, 96, 128, True))
    part = LeadingGeometry.of(whole, [40, 96])
    for mine, all_of_it in zip(part.sections, whole.sections, strict=True):
        assert mine.first_group == all_of_it.first_group
    assert [section.bundles for section in part.sections] == [40, 40, 96, 96, 128]
    assert part.file_bytes == whole.file_bytes
    with pytest.raises(ValueError, match='widths'):
        LeadingGeometry.of(whole, [97, 96])


@pytest.fixture(scope='module')
def ordered(fp16_store, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp('ordered')
    order_store(Path(fp16_store), folder / 'store', [TEXT * 16],
                OrderOptions(shares=(1.0, 0.8), head_rank=64, head_rows=32, most_tokens=256,
                             measured_tokens=32), lambda what, done, total: None)
    assert [path.name for path in folder.iterdir()] == ['store']
    return folder / 'store'


def _engine(store: Path, **changes: object) -> Engine:
    return Engine.open(EngineConfig(store, 400_000_000, context_length=128, lock_memory=False,
                                    verify=False, **changes))


def _logits(engine: Engine, tokens: list[int]) -> np.ndarray:
    out = np.empty((len(tokens), engine.model.spec.embedding.vocab_size), np.float32)
    engine.model.forward(np.array(tokens, np.int64), 0, True, out)
    return out


@pytest.mark.timeout(300)
def test_exact_mode_does_not_depend_on_the_order(fp16_store, ordered):
    found = []
    for store in (Path(fp16_store), ordered):
        engine = _engine(store)
        tokens = engine.tokenize(TEXT)[:24]
        found.append(_logits(engine, tokens))
        engine.close()
    np.testing.assert_allclose(found[1], found[0], atol=1e-3 * found[0].std())
    before, after = FlashStore.open(fp16_store), FlashStore.open(ordered)
    with TensorFile(ordered / 'neuron_order.safetensors') as tensors:
        order = tensors.read('1')
    assert sorted(order) == list(range(before.manifest.model.feed_forward.size))
    with NeuronReader(before) as old, NeuronReader(after) as new:
        for name in ('gate_up', 'down'):
            np.testing.assert_array_equal(new.bundles(name, 1), old.bundles(name, 1)[order])


@pytest.mark.timeout(300)
def test_the_leading_neurons_and_the_correction_give_what_numpy_gives(ordered):
    """One layer in float64 from the store's own rows; both cores agree."""
    store = FlashStore.open(ordered)
    widths = store.manifest.aggressive.shares['0.80'].widths
    x = np.random.default_rng(4).standard_normal((3, store.manifest.model.hidden_size))
    x = x.astype(np.float32)
    with NeuronReader(store) as reader, TensorFile(ordered / 'corrections.safetensors') as tensors:
        gate, up = reader.bundles('gate_up', 1)[:widths[1]].swapaxes(0, 1).astype(np.float64)
        down = reader.bundles('down', 1)[:widths[1], 0].astype(np.float64)
        inner, outer, mean = (tensors.read(f'0.80.1.{part}').astype(np.float64)
                              for part in ('inner', 'outer', 'mean'))
    a = x @ gate.T
    expected = a / (1 + np.exp(-a)) * (x @ up.T) @ down + x @ inner.T @ outer.T + mean
    assert sum(widths) < 0.8 * len(widths) * store.manifest.model.feed_forward.size + len(widths)
    for core in ('native', 'numpy'):
        engine = _engine(ordered, mode='aggressive', neuron_share=0.8, core=core)
        out = np.zeros_like(x)
        engine.model.feed_forward.begin(True, False)
        engine.model.feed_forward.run(0, x, np.zeros_like(x), True)
        engine.model.feed_forward.run(1, x, out, True)
        engine.close()
        np.testing.assert_allclose(out, expected, atol=2e-3 * np.abs(expected).max())


@pytest.mark.timeout(300)
def test_a_shortlist_computes_its_rows_exactly_and_reads_less(ordered):
    exact, short = (_engine(ordered, **changes) for changes in
                    ({}, {'mode': 'aggressive', 'neuron_share': 1.0}))
    normed = np.random.default_rng(5).standard_normal((1, exact.model.spec.hidden_size))
    normed = normed.astype(np.float32)
    whole, found = np.empty((2, 1, exact.model.spec.embedding.vocab_size), np.float32)
    exact.model.window.logits(normed, whole)
    short.model.shortlist.logits(short.model.window, normed, found)
    error = np.abs(found - whole)[0]
    best = np.argsort(whole[0])[-16:]               # they are on any shortlist of 32
    assert error[best].max() < 1e-4 * np.abs(whole).max()
    assert 1e-3 * whole.std() < error.max() < 0.2 * whole.std()     # the others are the sketch's
    names = [row.name for row in short.plan.rows]
    assert 'head shortlist' in names and short.plan.planned <= short.plan.budget
    answer = short.start(GenerationRequest(TEXT[:60], raw=True, max_tokens=4))
    assert len(list(answer)) >= 4 and answer.tokens
    assert short.stats()['active_neurons'] == short.stats()['total_neurons']
    exact.close()
    short.close()


@pytest.mark.timeout(300)
def test_guessed_tokens_save_passes_and_change_nothing(ordered):
    """An answer that repeats itself, with every token read as it is chosen."""
    repeating = 'one two three four. one two three four. one two three four. one two'
    found = {}
    for lookup_tokens in (0, 4):
        engine = _engine(ordered, mode='aggressive', neuron_share=0.8, lookup_tokens=lookup_tokens)
        answer = engine.start(GenerationRequest(repeating, raw=True, max_tokens=60))
        list(answer)
        found[lookup_tokens] = answer
        engine.close()
    assert found[4].tokens == found[0].tokens
    assert found[0].stats.guessed_tokens == 0 < found[4].stats.right_guesses


def test_what_a_store_is_not_prepared_for_is_refused(fp16_store, ordered):
    for store, share, words in ((Path(fp16_store), None, 'was not prepared'),
                                (ordered, 0.75, 'prepared for 1.00, 0.80')):
        with pytest.raises(FlashLlmError, match=words) as refused:
            _engine(store, mode='aggressive', neuron_share=share)
        assert refused.value.code == ErrorCode.INVALID_PARAMETER
    with pytest.raises(FlashLlmError, match='neuron_share is 0'):
        EngineConfig(ordered, 1, neuron_share=0)
    with pytest.raises(ValueError, match='shares are'):
        OrderOptions(shares=(0.3,))
    with pytest.raises(FileExistsError):
        order_store(Path(fp16_store), ordered, [TEXT], OrderOptions(), lambda *_: None)


def test_the_order_survives_in_the_manifest(ordered):
    manifest = FlashStore.open(ordered).manifest
    manifest.save(ordered.parent / 'again.yaml')
    assert type(manifest).load(ordered.parent / 'again.yaml') == manifest
    assert replace(manifest.aggressive, head_rows=1) != manifest.aggressive
    assert all(share.perplexity > 0 for share in manifest.aggressive.shares.values())


def test_the_command_says_what_is_wrong(tmp_path):
    found = subprocess.run([sys.executable, '-c', 'import sys; from flash_llm_ros.cli.main import '
                            'main; sys.exit(main())', 'order', str(tmp_path / 'none'),
                            str(tmp_path / 'new')], capture_output=True, text=True, timeout=60)
    assert found.returncode == 1 and 'There is no flash store' in found.stderr
