"""However a constraint is made, it takes no more memory than the plan has for it, and it ends."""

import json
from pathlib import Path
import subprocess
import sys

import pytest

from bench.faults.hostile_constraints import HOSTILE
from bench.memory.budget import SLACK, WORKER, job_of
from bench.support.worker import run_worker
from flash_llm_ros.engine.request.constrained_decoding import WORK_BYTES

SCRIPT = Path(__file__).parents[1] / 'support/measured_constraints.py'
ROOT = Path(__file__).parents[2]


@pytest.mark.timeout(180)
def test_hostile_constraints(real_store: Path) -> None:
    done = subprocess.run([sys.executable, str(SCRIPT), str(real_store)], cwd=ROOT,
                          env={'PYTHONPATH': ':'.join(sys.path)}, capture_output=True, text=True,
                          check=False)
    assert done.returncode == 0, done.stderr[-2000:]        # no crash, no endless recursion
    results = json.loads(done.stdout)
    assert results.keys() == HOSTILE.keys()
    for name, (peak, ended) in results.items():
        assert peak <= WORK_BYTES, name
        assert ended.endswith('tokens') or ended.startswith('INVALID_CONSTRAINT: '), ended
    assert sum('INVALID' in ended for _, ended in results.values()) < len(results) / 2


@pytest.mark.timeout(120)
def test_the_budget_holds_with_constraints(real_store: Path) -> None:
    budget = 120_000_000
    figures = run_worker(WORKER, job_of(real_store, budget, 'exact', 40, structured=True))
    assert figures['peak'] - figures['bare'] < budget + SLACK
    assert figures['planned'] <= budget
