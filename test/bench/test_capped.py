"""The comparison under a memory cap: what became of a run is told; rows are made of all runs."""

import json

import numpy as np
import pytest

from bench.memory import capped
from bench.memory.capped import PEER, Case, Side, summary
from bench.support import worker
from bench.support.command import run
from bench.support.memory_cgroup import cgroup_version
from bench.support.worker import run_capped

needs_cgroup = pytest.mark.skipif(not cgroup_version(), reason='no writable memory cgroup here')
WORKER = '''
import json, sys, time
job = json.loads(sys.argv[1])
if 'bare' in job:
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
def module(tmp_path, monkeypatch):
    """A module to be run, in a folder that stands for the root."""
    (tmp_path / 'some_worker.py').write_text(WORKER)
    monkeypatch.setattr(worker, 'ROOT', tmp_path)
    return 'some_worker'


@needs_cgroup
@pytest.mark.parametrize(('job', 'cap', 'expected'), [
    ({'do': 'hold', 'size': 20_000_000}, 100_000_000, {'size': 20_000_000, 'oom_kills': 0}),
    ({'do': 'hold', 'size': 200_000_000}, 60_000_000, {'failed': 'killed for want of memory'}),
    ({'do': 'fail'}, 100_000_000, {'failed': 'ended with 1: out of luck', 'oom_kills': 0}),
    ({'do': 'sleep'}, 100_000_000, {'failed': 'not done after 2 s', 'oom_kills': 0})])
def test_what_became_of_a_run_is_told(module, job, cap, expected):
    found = run_capped(module, job, cap, timeout=2)
    assert expected.items() <= found.items()
    assert (found['oom_kills'] > 0) == ('memory' in found.get('failed', ''))


@needs_cgroup
@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_command_measures_under_the_cap_and_shows_the_plan_where_nothing_fits(
        int8_store, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(capped, 'find_spec', lambda name: None)     # no peer
    report, model = tmp_path / 'report.json', tmp_path / 'model.gguf'
    model.write_bytes(bytes(4096))
    arguments = [str(model), '1MB', '150MB', '--store', str(int8_store), '--threads', '1',
                 '--rounds', '1', '--tokens', '5', '--json', str(report), '--draft',
                 str(int8_store)]
    assert run(capped.parser(), capped.measure, arguments) == 0
    printed = capsys.readouterr().out
    assert 'this store needs at least' in printed and 'KV cache' in printed
    figures = json.loads(report.read_text())['figures']
    exact = [run for run in figures['runs'] if run['side'].startswith('exact')]
    assert [(run['side'], run['allowance'], 'text' in run) for run in exact] == [
        (side, allowance, allowance > 10**6) for allowance in (10**6, 150 * 10**6)
        for side in ('exact', 'exact, lookup', 'exact, drafts')]
    assert exact[3]['text'] == exact[4]['text'] == exact[5]['text']
    for found in exact[3:]:
        assert len(found['token_seconds']) == 4
        assert found['oom_kills'] == 0
        assert found['peak'] <= found['bare'] + found['allowance']
    assert printed.splitlines()[-1].count('exact no run') == 1


@pytest.mark.parametrize('weights', [10_000_000, 400_000_000])
def test_nothing_is_measured_of_a_file_that_stays_in_the_page_cache(tmp_path, monkeypatch, weights):
    model = tmp_path / 'model.gguf'
    with model.open('wb') as file:
        file.truncate(weights)
    monkeypatch.setattr(capped, 'drop_from_page_cache', lambda path: 2_000_000)
    monkeypatch.setattr(capped, 'run_capped', lambda *arguments: {'bytes': 1})
    side = Side(PEER, 'module', model, 50, {})
    found = capped.one_run(side, [side], Case(7, 1, None), 1.0)
    if weights > 200_000_000:
        assert found['bytes'] == 1
    else:
        assert f'2 MB of {model} stay' in found['failed']


def test_a_row_puts_all_tokens_of_all_runs_together():
    times = [0.1, 0.2, 0.3], [0.2, 0.4, 0.9]
    runs = [{'side': PEER, 'allowance': 7, 'threads': 1, 'flash': None,
             'bare': 50, 'text': 'a', 'token_seconds': seconds, 'token_bytes': 40,
             'memory_rate': 250.0, 'flash_rate': 1000.0,
             'first_token_seconds': 1.0, 'bytes': 300 * scale, 'reads': 30, 'cpu_seconds': 0.3,
             'peak': 10 * scale, 'oom_kills': 0} for scale, seconds in enumerate(times, 1)]
    row = summary(runs)
    pooled = np.sort(np.concatenate(times))
    assert row['p50'] == pytest.approx((pooled[2] + pooled[3]) / 2)
    assert row['p99'] == pytest.approx(pooled[4] + 0.95 * (pooled[5] - pooled[4]))
    assert row['tokens_per_second'] == pytest.approx((3 / 0.6 + 3 / 1.5) / 2)
    assert (row['bytes'], row['reads'], row['peak']) == (150, 10, 20)
    # 40 bytes of memory, 100 and 200 of flash a token: memory is the first run's limit.
    assert row['roof'] == pytest.approx((1 / 0.16 + 1 / 0.2) / 2)
