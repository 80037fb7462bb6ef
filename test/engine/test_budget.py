"""The DRAM budget is a promise, and reads do not go through the page cache."""

import pytest

from bench.memory.budget import LIMIT_SLACK, PEAK_SLACK, measure, run_worker
from bench.support.memory_cgroup import cgroup_version, memory_cgroup

BUDGET = 96_000_000
pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.mark.skipif(not cgroup_version(), reason='no writable memory cgroup here')
@pytest.mark.parametrize('mode', ['exact', 'sparse'])
def test_the_work_is_done_under_a_kernel_cap_of_bare_process_and_budget(real_store, mode):
    figures = measure(real_store, BUDGET, mode, 48)
    assert figures['oom_kills'] == 0
    assert figures['tokens'] == 48 and 'Paris' in figures['text']
    assert figures['above_bare'] < BUDGET + PEAK_SLACK


@pytest.mark.skipif(not cgroup_version(), reason='no writable memory cgroup here')
def test_the_cap_is_real(real_store):
    """The same work is killed where the cap leaves no room for the budget."""
    bare = run_worker(real_store, BUDGET, 'bare', 1)['bare']
    with memory_cgroup() as group:
        group.limit(bare + BUDGET // 2 - LIMIT_SLACK)
        with pytest.raises(RuntimeError):
            run_worker(real_store, BUDGET, 'exact', 48, group)
        assert group.oom_kills() > 0


@pytest.mark.parametrize('mode', ['exact', 'sparse'])
def test_generation_reads_past_the_page_cache(real_store, mode):
    figures = run_worker(real_store, BUDGET, mode, 32)
    assert figures['direct']
    assert figures['flash_bytes'] > 32 * 10_000_000
    assert figures['cache_growth'] <= 0
