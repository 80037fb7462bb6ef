"""Which mode auto takes, and the sentence that says why: by hand, and of an engine."""

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
import re
import shutil
from typing import Any

from flash_costs import linear_profile
from generation_cases import answer, opened, opened_tightly
from planted_checkpoint import ACTIVE_SHARE
import pytest
from refusals import assert_error

from flash_llm_ros import onnx_runtime
from flash_llm_ros.engine.mode import check_mode, ranked_modes
from flash_llm_ros.engine.parts import Parts
from flash_llm_ros.engine.plan import PlanRow
from flash_llm_ros.store.device_profile import PROFILE, ReadCosts
from flash_llm_ros.store.errors import ErrorCode
from flash_llm_ros.store.flash_store import FlashStore
from flash_llm_ros.store.manifest import Manifest

SLOTS = {'exact': 900, 'gated': 850}
BYTES_COST = ReadCosts(1e-9, 1e-6, 1 << 20, 1e-6)
REQUESTS_COST = ReadCosts(1e-4, 1e-9, 1 << 20, 1e-9)


@pytest.fixture
def manifest(planted_store: Path) -> Manifest:
    """Of a bundled store, with a calibration that is worth it."""
    found = FlashStore.open(planted_store).manifest
    return with_calibration(found, groups_share=0.2, perplexity_ratio=1.005,
                            perplexity_error=0.0)


def with_calibration(manifest: Manifest, **changes: Any) -> Manifest:
    return replace(manifest, calibration=replace(manifest.calibration, **changes))


def test_what_was_asked_for(manifest: Manifest) -> None:
    for mode in ('exact', 'gated'):
        assert [found.mode for found in ranked_modes(mode, manifest, {}, None)] == [mode]


@pytest.mark.parametrize(('share', 'costs', 'mode'), [
    (0.05, BYTES_COST, 'gated'), (0.2, BYTES_COST, 'gated'), (1.0, BYTES_COST, 'exact'),
    # Where requests cost much, what lies between the groups is read with them.
    (0.2, REQUESTS_COST, 'exact'), (0.05, None, 'gated'), (0.2, None, 'exact')])
def test_gated_where_its_reads_take_less_time(manifest: Manifest, share: float,
                                              costs: ReadCosts | None, mode: str) -> None:
    found = ranked_modes('auto', with_calibration(manifest, groups_share=share), SLOTS, costs)[0]
    assert found.mode == mode
    assert len(re.findall(r'\d+\.\d ms \(\d+\.\d MB\)', found.reason)) == 2
    assert ('1.0050 ± 0.0000 times' in found.reason) == (mode == 'gated')
    assert ('not probed' in found.reason) == (costs is None)


def test_exact_where_all_fits(manifest: Manifest) -> None:
    mode, _ = ranked_modes('auto', manifest, {'exact': 10_000, 'gated': 10_000}, None)[0]
    assert mode == 'exact'


@pytest.mark.parametrize(('ratio', 'error', 'mode'), [
    (0.99, 0.0, 'gated'), (1.01, 0.0, 'gated'), (1.0101, 0.0, 'exact'), (2.0, 0.0, 'exact'),
    (0.99, 0.015, 'gated'), (1.005, 0.006, 'exact'), (0.99, 0.5, 'exact')])
def test_at_most_a_hundredth_of_perplexity(manifest: Manifest, ratio: float, error: float,
                                           mode: str) -> None:
    """That was measured with some certainty."""
    changed = with_calibration(manifest, perplexity_ratio=ratio, perplexity_error=error)
    found = ranked_modes('auto', changed, SLOTS, BYTES_COST)[0]
    assert found.mode == mode
    assert f'{ratio:.4f} ± {error:.4f} times' in found.reason


def test_predictors_that_this_onnx_runtime_does_not_compute(
        manifest: Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_runtime, 'TWO_BITS', False)
    for bits, mode in ((2, 'exact'), (4, 'gated')):
        predictors = [replace(found, kind='sketch', size=bits)
                      for found in manifest.calibration.predictors]
        changed = with_calibration(manifest, predictors=predictors, groups_share=0.05)
        found = ranked_modes('auto', changed, SLOTS, BYTES_COST)[0]
        assert found.mode == mode and ('since 1.24' in found.reason) == (bits == 2)
        refused = assert_error(ErrorCode.INVALID_PARAMETER, 'have 2 bits')
        with refused if bits == 2 else nullcontext():
            check_mode('gated', changed)


@pytest.mark.parametrize(('without', 'mode'), [('gated', 'exact'), ('exact', 'gated')])
def test_what_fits(manifest: Manifest, without: str, mode: str) -> None:
    found = ranked_modes('auto', manifest, {**SLOTS, without: 0}, None)[0]
    assert found.mode == mode and f'no room for mode {without}' in found.reason


def test_exact_without_a_calibration(manifest: Manifest, int8_store: Path) -> None:
    mode, reason = ranked_modes('auto', replace(manifest, calibration=None), SLOTS, None)[0]
    assert mode == 'exact' and 'without calibration' in reason
    mode, reason = ranked_modes('auto', FlashStore.open(int8_store).manifest, SLOTS, None)[0]
    assert mode == 'exact' and 'every neuron' in reason


@pytest.fixture(scope='module')
def fine_device(planted_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store on a device on which scattered requests cost next to nothing but their bytes."""
    store = Path(shutil.copytree(planted_store, tmp_path_factory.mktemp('fine') / 'own.store'))
    linear_profile(store, request=1e-8, byte=1e-9, latency=0.0).save(store / PROFILE)
    return store


def test_an_engine_takes_it(fine_device: Path) -> None:
    """Its text is that of the mode that it says it is in."""
    tight = opened_tightly(fine_device, mode='gated')
    budgets = {'small': tight.config.dram_budget + 300_000, 'large': 60_000_000}
    tight.close()
    found = {}
    for name, budget in budgets.items():
        engine = opened(fine_device, budget=budget)
        found[name] = engine.mode
        assert engine.config.mode == engine.mode and engine.mode_reason.startswith(
            f'mode {engine.mode}: ')
        text = answer(engine).text
        share = engine.stats()['active_neurons'] / engine.stats()['total_neurons']
        assert (share < 1) == (engine.mode == 'gated')
        engine.close()
        same = opened(fine_device, budget=budget, mode=engine.mode)
        assert answer(same).text == text
        same.close()
    assert found == {'small': 'gated', 'large': 'exact'}


def test_an_engine_stays_exact_where_requests_are_dear(planted_store: Path,
                                                       tmp_path: Path) -> None:
    store = Path(shutil.copytree(planted_store, tmp_path / 'own.store'))
    linear_profile(store, request=1e-3, byte=1e-9, latency=0.0).save(store / PROFILE)
    tight = opened_tightly(store, mode='gated')
    budget = tight.config.dram_budget + 300_000
    tight.close()
    engine = opened(store, budget=budget)
    assert engine.mode == 'exact' and 'in mode gated' in engine.mode_reason
    engine.close()


def test_exact_where_loading_took_more_than_was_thought(
        fine_device: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As libraries do that are loaded for the first time."""
    load = Parts.load

    def takes_more(parts: Parts) -> PlanRow:
        row = load(parts)
        return replace(row, bytes=row.bytes + 2_000_000 * (parts.config.mode == 'gated'))

    monkeypatch.setattr(Parts, 'load', takes_more)
    tight = opened_tightly(fine_device, mode='gated')
    budget = tight.config.dram_budget - 1_000_000
    tight.close()
    engine = opened(fine_device, budget=budget)
    assert engine.mode == 'exact' and 'no room for mode gated' in engine.mode_reason
    assert answer(engine).text
    engine.close()
    with assert_error(ErrorCode.BUDGET_TOO_SMALL):
        opened(fine_device, budget=budget, mode='gated')


def test_mode_gated_reads_and_uses_a_fraction(planted_store: Path) -> None:
    """Of what mode exact does, at the same budget, once the window is warm."""
    tight = opened_tightly(planted_store, mode='gated')
    budget = tight.config.dram_budget + 300_000     # what loading takes moves a little
    tight.close()
    read, used = {}, {}
    for mode in ('exact', 'gated'):
        engine = opened(planted_store, budget=budget, mode=mode)
        answer(engine)
        before = engine.stats()
        for _ in range(2):
            answer(engine, 'x', max_tokens=60)      # a prompt of one token
        after = engine.stats()
        read[mode] = after['misses'] - before['misses']
        used[mode] = ((after['active_neurons'] - before['active_neurons'])
                      / (after['total_neurons'] - before['total_neurons']))
        engine.close()
    assert 0 < read['gated'] < 0.6 * read['exact']
    assert used['exact'] == 1 and 0 < used['gated'] < 2 * ACTIVE_SHARE + 1 / 60
