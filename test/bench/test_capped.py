"""The comparison under a memory cap: what it runs, what it reports, what its floors are made of."""

from argparse import Namespace
import json
import math
import shutil
import sys

from floors import Floors, copy_rate, direct_read_rate, weights_per_token
import numpy as np
import pytest

from bench.memory import capped
from bench.memory.capped_table import PEER, Side, headline, summary
from bench.support.capped_process import bare_bytes, run_capped
from bench.support.memory_cgroup import cgroup_version
from flash_llm_ros.store.device_profile import PATTERNS, PROFILE, DeviceProfile, Measurement
from flash_llm_ros.store.flash_device import FlashDevice
from flash_llm_ros.store.flash_store import FlashStore

needs_cgroup = pytest.mark.skipif(not cgroup_version(), reason='no writable memory cgroup here')
WORKER = '''
import json, sys, time
job = json.loads(sys.argv[1])
if job['bare']:
    print(json.dumps({'bare': 1}))
elif job['do'] == 'fail':
    sys.exit('out of luck')
elif job['do'] == 'sleep':
    time.sleep(60)
else:
    held = b'x' * job['size']
    print(json.dumps({'size': len(held)}))
'''


@pytest.fixture
def worker(tmp_path):
    path = tmp_path / 'worker.py'
    path.write_text(WORKER)
    return path


def test_the_bare_process_is_the_workers_own_report(worker):
    assert bare_bytes(sys.executable, worker) == {'bare': 1}


@needs_cgroup
@pytest.mark.parametrize(('job', 'cap', 'expected'), [
    ({'do': 'hold', 'size': 20_000_000}, 100_000_000, {'size': 20_000_000, 'oom_kills': 0}),
    ({'do': 'hold', 'size': 200_000_000}, 60_000_000, {'failed': 'killed for want of memory'}),
    ({'do': 'fail'}, 100_000_000, {'failed': 'ended with 1: out of luck', 'oom_kills': 0}),
    ({'do': 'sleep'}, 100_000_000, {'failed': 'not done after 2 s', 'oom_kills': 0})])
def test_what_became_of_a_run_is_told(worker, job, cap, expected):
    found = run_capped(sys.executable, worker, job, cap, timeout=2)
    assert expected.items() <= found.items()
    assert (found['oom_kills'] > 0) == ('memory' in found.get('failed', ''))


@needs_cgroup
@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_command_runs_each_regime_and_shows_the_plan_where_nothing_fits(
        int8_store, tmp_path, monkeypatch, capsys):
    report = tmp_path / 'report.json'
    model = tmp_path / 'model.gguf'
    model.write_bytes(bytes(4096))
    monkeypatch.setattr(sys, 'argv', [
        'capped.py', str(model), '1MB', '150MB', '--store', str(int8_store), '--threads', '1',
        '--rounds', '1', '--tokens', '5', '--json', str(report)])
    assert capped.main() == 0
    printed = capsys.readouterr().out
    assert 'this store needs at least' in printed and 'KV cache' in printed
    figures = json.loads(report.read_text())
    assert [(row['side'], row['allowance'], 'p50' in row) for row in figures['rows']] == [
        (side, allowance, allowance > 10**6) for allowance in (10**6, 150 * 10**6)
        for side in ('exact', 'exact, lookup', 'sparse 50%', 'sparse 70%')]
    for run in figures['runs'][4:]:
        assert len(run['tokens']) == 5 and len(run['token_seconds']) == 4
        assert run['oom_kills'] == 0 and run['peak'] <= run['bare'] + run['allowance']
    assert printed.splitlines()[-1].count('no run') == 4


@pytest.mark.parametrize('name', [PEER, 'exact'])
def test_nothing_is_measured_of_a_file_that_stays_in_the_page_cache(
        int8_store, tmp_path, monkeypatch, name):
    model = tmp_path / 'model.gguf'
    used = model if name == PEER else int8_store
    monkeypatch.setattr(capped, 'drop_from_page_cache', lambda path: 2_000_000 * (path == used))
    monkeypatch.setattr(capped, 'run_capped', lambda *arguments: {'bytes': 1})
    options, store = Namespace(model=model, timeout=1.0), FlashStore.open(int8_store)

    def measured(weights: int) -> dict[str, object]:
        side = Side(name, 'mode', name, 'python', tmp_path, 50, weights, {})
        return capped.measure(side, 7, 1, options, store)

    assert f'2 MB of {used} stay' in measured(100_000_000)['failed']
    assert measured(300_000_000)['bytes'] == 1


def test_a_row_puts_all_tokens_of_all_runs_together(int8_store):
    side = Side(PEER, 'peer', PEER, 'python', int8_store, 50, 100, {})
    times = [0.1, 0.2, 0.3], [0.2, 0.4, 0.9]
    runs = [{'side': PEER, 'allowance': 7, 'threads': 1, 'load': 0.5, 'still_cached': 0,
             'token_seconds': seconds, 'first_token_seconds': 1.0, 'open_seconds': 2.0,
             'bytes': 300 * scale, 'reads': 30, 'cpu_seconds': 0.3, 'peak': 10 * scale,
             'oom_kills': 0} for scale, seconds in enumerate(times, 1)]
    other = {**runs[0], 'threads': 2, 'token_seconds': [100.0]}
    row = summary(side, 7, 1, [*runs, other], None, None)
    pooled = np.sort(np.concatenate(times))
    assert row['p50'] == pytest.approx((pooled[2] + pooled[3]) / 2)
    assert row['p99'] == pytest.approx(pooled[4] + 0.95 * (pooled[5] - pooled[4]))
    assert row['tokens_per_second'] == pytest.approx((3 / 0.6 + 3 / 1.5) / 2)
    assert (row['bytes'], row['reads'], row['peak']) == (150, 10, 20)


def test_the_headline_says_who_could_not_run():
    rows = [{'side': PEER, 'allowance': 10**7, 'threads': 1, 'tokens_per_second': 2.0},
            {'side': 'exact', 'allowance': 10**7, 'threads': 1, 'tokens_per_second': 5.0},
            {'side': 'sparse 50%', 'allowance': 10**7, 'threads': 1}]
    assert headline('m.gguf', rows) == ('m.gguf against llama.cpp: 10 MB, 1 thr.: exact 2.50x, '
                                        'sparse 50% no run')


@pytest.mark.parametrize(('mode', 'active'), [('exact', 1.0), ('sparse', 0.25)])
def test_the_weights_of_a_token_are_counted_row_by_row(int8_store, mode, active):
    store = FlashStore.open(int8_store)
    spec, files = store.manifest.model, store.manifest.files
    row = spec.hidden_size + 2 * -(-spec.hidden_size // 32)     # int8, a scale per block of 32
    rows = spec.layers * spec.feed_forward.size * (2 + active) + spec.embedding.vocab_size
    expected = rows * row + files['resident.safetensors']['bytes']
    if mode == 'sparse':
        expected += files['predictors.safetensors']['bytes']
    assert weights_per_token(store, mode, active) == pytest.approx(expected)


@pytest.mark.parametrize('profiled', [False, True])
def test_a_floor_is_the_larger_of_device_and_memory(int8_store, tmp_path, profiled):
    store = FlashStore.open(shutil.copytree(int8_store, tmp_path / 'store'))
    if profiled:        # a thousand reads of any size a second
        DeviceProfile(FlashDevice.of(store.path), 'reader', True, '2026-01-01T00:00:00+00:00', 1,
                      tuple(Measurement(pattern, size, 1, 1000.0) for size in (4096, 1 << 20)
                            for pattern in PATTERNS)).save(store.path / PROFILE)
    floors = Floors(store, [1])
    assert floors.device_rate == 0 if profiled else floors.device_rate > 0
    floors.measure_again()
    assert floors.copy_rates[1] > 0
    floors.device_rate, floors.copy_rates = 1e6, {1: 2e6}
    found = floors.of('exact', 1, 1.0, 1.0, 5e6, 10)
    half = floors.of('exact', 1, 1.0, 0.5, 5e6, 10)     # two tokens a pass
    assert half == {**found, 'weights': found['weights'] / 2,
                    'copy_seconds': found['copy_seconds'] / 2, 'floor': half['floor']}
    assert found['device_seconds'] == pytest.approx(0.01 if profiled else 5.0)
    assert found['copy_seconds'] == found['weights'] / 2e6
    assert found['floor'] == max(found['device_seconds'], found['copy_seconds'])


def test_rates_are_measured(int8_store):
    assert 0 < direct_read_rate(FlashStore.open(int8_store).neurons, 1) < math.inf
    assert 0 < copy_rate(2, 1) < math.inf
