"""The report: what a budget leaves to read is what the engine reads, and the page of a store."""

from html.parser import HTMLParser
import json
from pathlib import Path
import re
import shutil
from xml.etree import ElementTree

from flash_costs import linear_profile
import numpy as np
import pytest

from flash_llm_ros.cli.main import main
from flash_llm_ros.engine import Engine, EngineConfig
from flash_llm_ros.engine.memory.window_plan import head_index
from flash_llm_ros.report.advice import recommended
from flash_llm_ros.report.figures import BudgetFloor, budget_floors
from flash_llm_ros.store.device_profile import DeviceProfile, Measurement
from flash_llm_ros.store.flash_device import FlashDevice
from flash_llm_ros.store.flash_store import FlashStore


def test_what_a_budget_leaves_to_read_is_what_the_engine_reads(int8_store: Path) -> None:
    store = FlashStore.open(int8_store)
    geometry = store.manifest.geometry
    engine = Engine.open(EngineConfig(int8_store, 40_000_000, 'exact', lock_memory=False))
    plan = engine.plan
    engine.close()
    floors = budget_floors({'exact': plan}, store, None)
    assert [floor.budget for floor in floors] == sorted(floor.budget for floor in floors)
    assert floors[-1].read_bytes == 0 and floors[0].milliseconds is None
    every = sum(section.groups for index, section in enumerate(geometry.sections)
                if section.layer >= 0 or index == head_index(geometry)) * geometry.group_bytes
    assert 0 < floors[0].read_bytes <= every
    for floor in floors[:2]:
        # Loading takes a little more or less each time, so the window is given, not the budget.
        slots = floor.window_bytes // geometry.group_bytes
        engine = Engine.open(EngineConfig(int8_store, floor.budget + 2_000_000, 'exact',
                                          lookup_tokens=0, lock_memory=False))
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


@pytest.mark.ros
def test_advice_names_parameters_of_the_node() -> None:
    from flash_llm_ros.node.parameters import BY_NAME

    settings = {one.name: one.value for one in recommended(BudgetFloor(30_000_000, 1, 1, None, ''))}
    assert settings['memory.dram_budget'] == '30MB'
    for name, value in settings.items():
        assert BY_NAME[name].complaint(value) == '' and value != BY_NAME[name].default
    whole = recommended(BudgetFloor(30_000_000, 1, 0, None, ''))
    assert [one.name for one in whole] == ['memory.dram_budget']


class Page(HTMLParser):
    """What a page is made of."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open, self.tags, self.text = [], [], ''
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list) -> None:
        self.tags.append(tag)
        if tag not in ('meta',):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if self.open and self.open[-1] == tag:
            self.open.pop()

    def handle_data(self, data: str) -> None:
        self.text += data


def plotted(svg: str) -> list[list[tuple[float, float]]]:
    """The points of each line, read off a plot by its ticks, both axes plain."""
    texts = [(float(each.get('x')), float(each.get('y')), each.get('text-anchor'), each.text)
             for each in ElementTree.fromstring(svg).iterfind('.//{*}text') if each.get('x')]
    x_ticks = [(x, float(text)) for x, _, anchor, text in texts
               if anchor == 'middle' and re.fullmatch(r'[0-9.]+', text)]
    y_ticks = [(y - 4, float(text)) for _, y, anchor, text in texts if anchor == 'end']
    assert len(x_ticks) > 2 and len(y_ticks) > 2
    x_line, y_line = (np.polyfit(*zip(*ticks, strict=True), 1) for ticks in (x_ticks, y_ticks))
    lines: dict[str, list[tuple[float, float]]] = {}
    for each in ElementTree.fromstring(svg).iterfind('.//{*}circle'):
        lines.setdefault(each.get('fill'), []).append((
            float(np.polyval(x_line, float(each.get('cx')))),
            float(np.polyval(y_line, float(each.get('cy'))))))
    return list(lines.values())


def test_page(int8_store: Path, tmp_path: Path) -> None:
    store = shutil.copytree(int8_store, tmp_path / 'store')
    DeviceProfile(
        FlashDevice.of(store), 'threads', True, '2026-01-01T00:00:00+00:00', 10**6,
        tuple(Measurement(pattern, size, 1, 1234.0)
              for pattern in ('random', 'sequential') for size in (4096, 1 << 20)),
    ).save(store / 'profile.yaml')
    out, figures = tmp_path / 'report.html', tmp_path / 'report.json'
    assert main(['report', str(store), '--out', str(out), '--json', str(figures)]) == 0
    text = out.read_text()
    page, found = Page(text), json.loads(figures.read_text())
    assert not page.open and not {'script', 'link'} & set(page.tags) and 'src=' not in text
    floors = found['floors']
    reads, times, scattered = re.findall(r'<svg.*?</svg>', text, re.DOTALL)
    for drawn, name, unit in ((reads, 'read_bytes', 1e6), (times, 'milliseconds', 1)):
        line, = plotted(drawn)
        assert np.allclose(line, [(floor['budget'] / 1e6, floor[name] / unit)
                                  for floor in floors], rtol=0.01, atol=0.1)
    assert scattered.count('<circle') == 2 and '4 Ki' in scattered and '1 at once' in scattered
    assert len(floors) == 6 and floors[-1]['milliseconds'] == 0
    # By the profile a read of any length takes 1/1234 s.
    assert floors[0]['milliseconds'] == pytest.approx(
        -(-floors[0]['read_bytes'] // 131072) / 1.234)
    for words in (f'memory.dram_budget: {-(-floors[0]["budget"] // 1_000_000)}MB',
                  '3 layers of 256 neurons', 'embedding', '1234',
                  'None: every neuron is used', 'Time of a token in mode exact',
                  'each of these budgets mode exact: the model uses every neuron'):
        assert words in page.text, words


def test_page_without_a_profile(int8_store: Path, tmp_path: Path) -> None:
    out = tmp_path / 'report.html'
    assert main(['report', str(int8_store), '--out', str(out), '--budgets', '1MB']) == 0
    text = Page(out.read_text()).text
    assert 'not probed' in text and 'below the least' in text


def test_page_of_a_calibrated_store(planted_store: Path, tmp_path: Path) -> None:
    """What auto takes is said for each budget, and an engine takes it."""
    store = shutil.copytree(planted_store, tmp_path / 'store')
    linear_profile(store, request=1e-8, byte=1e-9, latency=0.0).save(store / 'profile.yaml')
    out, figures = tmp_path / 'report.html', tmp_path / 'report.json'
    # Far from where the mode changes: what loading takes is a little more or less each time.
    assert main(['report', str(store), '--out', str(out), '--json', str(figures),
                 '--budgets', '15MB', '17MB', '20MB']) == 0
    page, floors = Page(out.read_text()), json.loads(figures.read_text())['floors']
    assert not page.open
    predictors = FlashStore.open(store).manifest.calibration.predictors
    lines = plotted(re.findall(r'<svg.*?</svg>', out.read_text(), re.DOTALL)[-1])
    for line, name in zip(lines, ('zeros', 'recall', 'precision'), strict=True):
        assert np.allclose(line, [(layer, 100 * getattr(facts, name))
                                  for layer, facts in enumerate(predictors)], atol=0.5)
    for floor in floors:
        assert f"{floor['budget'] / 1e6:.0f} MB: {floor['auto']}" in page.text
    modes = [floor['auto'].split(': ')[0] for floor in floors]
    assert modes == ['mode exact', 'mode gated', 'mode exact']
    assert 'no room for mode gated' in floors[0]['auto']
    for floor in floors:
        engine = Engine.open(EngineConfig(store, floor['budget'], lock_memory=False))
        said, meant = (re.sub(r'[0-9.]+', '0', text)
                       for text in (engine.mode_reason, floor['auto']))
        assert said == meant
        engine.close()
