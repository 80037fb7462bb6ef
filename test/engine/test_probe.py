"""Probing a real file, the command, and the engine that plans its reads by the result."""

import json
from pathlib import Path
import shutil

from flash_costs import linear_profile
import numpy as np
import pytest
from refusals import assert_error

from flash_llm_ros.cli import probe as probe_command
from flash_llm_ros.cli.main import main
from flash_llm_ros.engine import Engine, EngineConfig, GenerationRequest
from flash_llm_ros.engine.memory.device_probe import DEPTHS, SIZES, probe
from flash_llm_ros.store.device_profile import PROFILE, DeviceProfile
from flash_llm_ros.store.errors import ErrorCode, FlashLlmError


def quiet(what: str, done: int, total: int) -> None:
    pass


def test_every_case_is_measured(tmp_path: Path) -> None:
    file = tmp_path / 'neurons.bin'
    file.write_bytes(bytes(3 << 20))
    calls = []
    profile = probe(file, 0.1, lambda *call: calls.append(call))
    sizes = SIZES if 512 in profile.sizes else SIZES[1:]
    assert (profile.sizes, profile.depths) == (list(sizes), list(DEPTHS))
    assert len(profile.measurements) == 2 * len(sizes) * len(DEPTHS)
    assert profile.span_bytes == 3 << 20
    assert [done for _, done, _ in calls] == list(range(1, len(calls) + 1))
    assert calls[-1] == ('probing', len(calls), len(calls))


def test_reads_longer_than_the_file_are_left_out(tmp_path: Path) -> None:
    file = tmp_path / 'neurons.bin'
    file.write_bytes(bytes(20_000))
    assert probe(file, 0.05, quiet).sizes[-1] == 16384


@pytest.mark.parametrize('length', [0, 100, 4095])
def test_a_file_without_a_single_page_is_refused(tmp_path: Path, length: int) -> None:
    file = tmp_path / 'neurons.bin'
    file.write_bytes(bytes(length))
    with pytest.raises(FlashLlmError, match=f'is {length} bytes long') as caught:
        probe(file, 0.05, quiet)
    assert caught.value.code == ErrorCode.INVALID_PARAMETER


def test_a_missing_file(tmp_path: Path) -> None:
    with assert_error(ErrorCode.READ_FAILED):
        probe(tmp_path / 'missing', 0.05, quiet)


@pytest.fixture
def store(int8_store: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(int8_store, tmp_path / 'own.store'))


def test_the_command(store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
                     monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe_command, 'QUICK_SECONDS', 0.1)
    before = (store / 'manifest.yaml').read_bytes()
    assert main(['probe', str(store), '--quick', '--json', str(tmp_path / 'out.json')]) == 0
    captured = capsys.readouterr()
    assert 'random reads' in captured.out and 'sequential reads' in captured.out
    assert 'the store is small' in captured.out
    assert captured.out.splitlines()[-1] == f'{store / PROFILE} is used from the next start on'
    assert 'probing' in captured.err
    profile = DeviceProfile.load(store / PROFILE)
    facts = json.loads((tmp_path / 'out.json').read_text())
    assert len(facts['measurements']) == len(profile.measurements)
    assert facts['device'] == vars(profile.device)
    assert all(floor['seconds'] > 0 for floor in facts['floors'])
    assert (store / 'manifest.yaml').read_bytes() == before
    assert main(['verify', str(store)]) == 0


def answer(store: Path) -> tuple[list[int], int, list[str]]:
    """What a prompt is answered, the gap read between two neurons of a layer, the log."""
    lines: list[str] = []
    engine = Engine.open(EngineConfig(store, 22_000_000, 'gated', lock_memory=False),
                         lines.append)
    try:
        window = engine.model.window
        active = np.zeros(engine.model.spec.feed_forward.size, np.uint8)
        per_group = engine.geometry.section('bundle', 0).bundles_per_group
        active[[0, 50 * per_group]] = 1
        window.core.bundled_sparse(window.section('bundle', 0), np.ones(128, np.float32), active,
                                   np.zeros(128, np.float32), 'relu')
        gap = engine.stats()['gap_groups']
        generation = engine.start(GenerationRequest('Where is the drone?', raw=True,
                                                    max_tokens=12))
        for _ in generation:
            pass
        return generation.tokens, gap, lines
    finally:
        engine.close()


def test_the_engine_plans_by_the_profile_and_says_the_same(planted_store: Path,
                                                           tmp_path: Path) -> None:
    store = Path(shutil.copytree(planted_store, tmp_path / 'own.store'))
    tokens, gap, lines = answer(store)
    assert any('no device profile' in line for line in lines)
    assert gap == 0
    # Requests that cost as much as a megabyte: all gaps are read.
    linear_profile(store, request=1e-3, byte=1e-9, latency=0.0).save(store / PROFILE)
    planned_tokens, gap, lines = answer(store)
    assert any(f'reads are planned by {store / PROFILE}' in line for line in lines)
    assert gap == 49
    assert planned_tokens == tokens
