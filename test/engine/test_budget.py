"""The DRAM budget is a promise, and reads do not go through the page cache."""

import os
from pathlib import Path

import pytest

from bench.memory.budget import SLACK, WORKER, figures_of, job_of
from bench.support.memory_cgroup import cgroup_version
from bench.support.worker import bare_bytes, run_capped, run_worker
from flash_llm_ros.engine import Engine, EngineConfig

BUDGET = 96_000_000
pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
capped = pytest.mark.skipif(not cgroup_version(), reason='no writable memory cgroup here')


@capped
@pytest.mark.parametrize('threads', [1, 2, 4])
def test_the_work_is_done_under_a_kernel_cap_of_bare_process_and_budget(real_store, threads):
    figures = figures_of(job_of(real_store, BUDGET, 'exact', 48, threads=threads))
    assert figures['oom_kills'] == 0
    assert figures['generated'] == 48 and 'Paris' in figures['text']
    assert figures['above_bare'] < BUDGET + SLACK


@capped
@pytest.mark.timeout(600)       # with the conversion, where no test has needed it yet
@pytest.mark.parametrize(('mode', 'threads', 'budget'), [
    ('gated', 1, BUDGET), ('gated', 2, BUDGET), ('gated', 4, 112_000_000), ('exact', 2, BUDGET)])
def test_so_it_is_of_a_model_with_predictors(real_relu_store, mode, threads, budget):
    figures = figures_of(job_of(real_relu_store, budget, mode, 48, threads=threads))
    assert figures['oom_kills'] == 0 and figures['generated'] == 48
    assert figures['above_bare'] < budget + SLACK


@capped
def test_the_cap_counts_the_process_in_which_constraints_are_tried(real_store):
    figures = figures_of(job_of(real_store, 140_000_000, 'exact', 48, structured=True, threads=2))
    assert figures['oom_kills'] == 0 and figures['generated'] == 48


@capped
def test_the_cap_is_real(real_store):
    """The same work is killed where the cap leaves no room for the budget."""
    job = job_of(real_store, BUDGET, 'exact', 48)
    assert run_capped(WORKER, job, bare_bytes(WORKER) + BUDGET // 4)['oom_kills'] > 0


def test_generation_reads_past_the_page_cache(real_store):
    figures = run_worker(WORKER, job_of(real_store, BUDGET, 'exact', 32))
    assert figures['direct']
    assert figures['flash_bytes'] > 32 * 10_000_000
    assert figures['cache_growth'] <= 0


def threads_of(store: Path, mode: str, threads: int) -> int:
    before = set(os.listdir('/proc/self/task'))
    engine = Engine.open(EngineConfig(store, 32_000_000, mode, threads=threads, reader='io_uring',
                                      lock_memory=False))
    found = set(os.listdir('/proc/self/task')) - before
    engine.close()
    return len(found)


def test_only_attention_and_the_core_have_threads_of_their_own(planted_store):
    """Each of ONNX Runtime takes memory that the plan has to know; predictors have none."""
    exact = [threads_of(planted_store, 'exact', count) for count in (1, 3)]
    gated = [threads_of(planted_store, 'gated', count) for count in (1, 3)]
    assert exact[1] > exact[0] and gated == exact
