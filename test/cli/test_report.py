"""The report's figures against brute force, and its page of a real store."""

from html.parser import HTMLParser
import json
from pathlib import Path

import numpy as np
import pytest

from flash_llm_ros.cli.main import main
from flash_llm_ros.engine import Engine, EngineConfig
from flash_llm_ros.engine.memory.window_plan import head_index
from flash_llm_ros.engine.neuron_trace import NeuronTrace
from flash_llm_ros.report.advice import recommended
from flash_llm_ros.report.figures import BudgetFloor, budget_floors, gini, layer_activities
from flash_llm_ros.store.flash_store import FlashStore

rng = np.random.default_rng(7)


def trace_of(used: np.ndarray) -> NeuronTrace:
    """`used` is uint8 [tokens, layers, neurons]; alone in groups."""
    tokens, layers, neurons = used.shape
    ones = np.ones(layers, np.int64)
    return NeuronTrace('planted', tokens, 512, layers * neurons, np.arange(layers) * neurons,
                       neurons * ones, ones, np.tile(np.arange(layers), tokens),
                       np.zeros(layers * tokens, np.uint8),
                       np.packbits(used, axis=2).reshape(-1))


def test_frequencies_and_friends_by_brute_force() -> None:
    chance = rng.random((1, 2, 40)) ** 3
    used = (rng.random((60, 2, 40)) < chance).astype(np.uint8)
    for layer, found in enumerate(layer_activities(trace_of(used))):
        mine = used[:, layer]
        order = sorted(range(40), key=lambda neuron: (-int(mine[:, neuron].sum()), neuron))
        assert found.frequencies.tolist() == [mine[:, neuron].mean() for neuron in order]
        counts = dict.fromkeys(range(40), 0)
        places = []
        for neuron in order:
            if not mine[:, neuron].any():
                continue
            together = {other: int((mine[:, neuron] & mine[:, other]).sum())
                        for other in order if other != neuron}
            closest = max(together, key=together.get)   # of equals the first: the hotter
            counts[closest] += 1
            places.append(order.index(closest) / 39)
        assert found.friends.tolist() == sorted(counts.values(), reverse=True)
        assert found.friend_rank == pytest.approx(np.mean(places))


@pytest.mark.parametrize(('values', 'expected'), [
    ([1, 1, 1, 1], 0), ([0, 0, 0, 1], 0.75), ([0, 0], 0), ([1, 3], 0.25)])
def test_gini(values: list[float], expected: float) -> None:
    by_pairs = (np.abs(np.subtract.outer(values, values)).sum()
                / max(2 * len(values) * np.sum(values), 1e-9))
    assert gini(np.array(values, float)) == pytest.approx(expected) == pytest.approx(by_pairs)


def test_what_a_budget_leaves_to_read_is_what_the_engine_reads(int8_store: Path) -> None:
    store = FlashStore.open(int8_store)
    geometry = store.manifest.geometry
    engine = Engine.open(EngineConfig(int8_store, 40_000_000, lock_memory=False))
    plan = engine.plan
    engine.close()
    floors = budget_floors(plan, geometry, None)
    assert [floor.budget for floor in floors] == sorted(floor.budget for floor in floors)
    assert floors[-1].read_bytes == 0 and floors[0].milliseconds is None
    every = sum(section.groups for index, section in enumerate(geometry.sections)
                if section.layer >= 0 or index == head_index(geometry)) * geometry.group_bytes
    assert 0 < floors[0].read_bytes <= every
    for floor in floors[:2]:
        # Loading takes a little more or less each time, so the window is given, not the budget.
        slots = floor.window_bytes // geometry.group_bytes
        engine = Engine.open(EngineConfig(int8_store, floor.budget + 2_000_000, lookup_tokens=0,
                                          lock_memory=False))
        try:
            tokens = np.arange(1, 2, dtype=np.int64)
            logits = np.empty((1, store.manifest.model.embedding.vocab_size), np.float32)
            engine.model.forward(tokens, 0, dense=False, logits=logits)
            before = engine.stats()['flash_bytes']
            for position in range(1, 9):
                engine.model.forward(tokens, position, dense=False, logits=logits)
            read = (engine.stats()['flash_bytes'] - before) / 8
            really = engine.plan.window_bytes // geometry.group_bytes
        finally:
            engine.close()
        spared = (really - slots) * geometry.group_bytes
        assert read == pytest.approx(max(0, floor.read_bytes - spared), abs=0.1 * every)


@pytest.mark.parametrize(('perplexity', 'mode', 'sparsity'), [
    ({'0.00': 10.0, '0.50': 10.2, '0.60': 10.29, '0.70': 11.0}, 'sparse', 0.6),
    ({'0.00': 10.0, '0.50': 10.31}, 'exact', None), ({}, 'exact', None)])
def test_advice_costs_no_more_than_it_says(
        int8_store: Path, perplexity: dict, mode: str, sparsity: float | None) -> None:
    manifest = FlashStore.open(int8_store).manifest
    manifest.calibration.perplexity.clear()
    manifest.calibration.perplexity.update(perplexity)
    settings = {one.name: one.value for one in recommended(
        manifest, BudgetFloor(30_000_000, 1, 1, None))}
    assert settings['dram_budget'] == '30MB'
    assert settings['mode'] == mode and settings.get('sparsity') == sparsity


class Page(HTMLParser):
    """What a page is made of."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open, self.tags, self.text = [], [], ''
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list) -> None:
        self.tags.append(tag)
        if tag not in ('meta', 'use', 'path', 'rect', 'image'):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if self.open and self.open[-1] == tag:
            self.open.pop()

    def handle_data(self, data: str) -> None:
        self.text += data


def test_page(int8_store: Path, tmp_path: Path) -> None:
    out, figures = tmp_path / 'report.html', tmp_path / 'report.json'
    arguments = ['report', str(int8_store), '--out', str(out), '--tokens', '12',
                 '--json', str(figures)]
    assert main(arguments) == 0
    first = out.read_text()
    page, found = Page(first), json.loads(figures.read_text())
    assert page.tags.count('svg') >= 4 and not page.open and 'script' not in page.tags
    assert 'http-equiv' not in first and 'src=' not in first
    assert found['trace_tokens'] == 12 and len(found['floors']) == 6
    rates = found['hit_rates']
    assert all(ours <= best + 1e-9 for ours, best in zip(
        rates['least_likely'], rates['belady'], strict=True))
    assert f'dram_budget: {-(-found["floors"][0]["budget"] // 1_000_000)}MB' in page.text


def test_page_of_a_store_that_is_not_calibrated(tmp_path: Path) -> None:
    from tiny_checkpoint import tiny_store

    store = tiny_store(tmp_path, calibrate=False)
    out = tmp_path / 'report.html'
    assert main(['report', str(store), '--out', str(out)]) == 0
    text = Page(out.read_text()).text
    assert text.count('flash_llm calibrate STORE') >= 4 and 'not probed' in text


def test_without_matplotlib(int8_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                            capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setitem(__import__('sys').modules, 'matplotlib', None)
    assert main(['report', str(int8_store), '--out', str(tmp_path / 'report.html')]) == 1
    assert 'pip install "flash_llm_ros[report]"' in capsys.readouterr().err
    assert not (tmp_path / 'report.html').exists()
