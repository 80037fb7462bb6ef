"""The DRAM budget is a promise, and reads do not go through the page cache."""

import pytest

from bench.memory.budget import LIMIT_SLACK, PEAK_SLACK, WORKER, figures_of, job_of
from bench.support.memory_cgroup import cgroup_version
from bench.support.worker import bare_bytes, run_capped, run_worker

BUDGET = 96_000_000
pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.mark.skipif(not cgroup_version(), reason='no writable memory cgroup here')
def test_the_work_is_done_under_a_kernel_cap_of_bare_process_and_budget(real_store):
    figures = figures_of(job_of(real_store, BUDGET, 'exact', 48))
    assert figures['oom_kills'] == 0
    assert figures['generated'] == 48 and 'Paris' in figures['text']
    assert figures['above_bare'] < BUDGET + PEAK_SLACK


@pytest.mark.skipif(not cgroup_version(), reason='no writable memory cgroup here')
def test_the_cap_is_real(real_store):
    """The same work is killed where the cap leaves no room for the budget."""
    job = job_of(real_store, BUDGET, 'exact', 48)
    assert run_capped(WORKER, job, bare_bytes(WORKER) + BUDGET // 2 - LIMIT_SLACK)['oom_kills'] > 0


def test_generation_reads_past_the_page_cache(real_store):
    figures = run_worker(WORKER, job_of(real_store, BUDGET, 'exact', 32))
    assert figures['direct']
    assert figures['flash_bytes'] > 32 * 10_000_000
    assert figures['cache_growth'] <= 0
