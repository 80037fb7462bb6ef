"""`flash_llm doctor`: what it says of a machine, and the arithmetic behind its advice."""

from pathlib import Path

import pytest
import yaml

from flash_llm_ros.cli import doctor
from flash_llm_ros.cli.main import main
from flash_llm_ros.report import candidates
from flash_llm_ros.report.candidates import Candidate, prospects, recommended

MB = 10**6
SMALL = Candidate('small', '', 150 * MB, 100 * MB, 50 * MB, 5000, 1000)
LARGE = Candidate('large', '', 1000 * MB, 900 * MB, 100 * MB, 10_000, 8192)


def test_a_machine_is_looked_at(tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.setattr(doctor, 'FILE_BYTES', 8 << 20)
    assert main(['doctor', str(tmp_path), '--seconds', '0.2']) == 0
    out = capsys.readouterr().out
    for word in ('board', 'processors', 'GB free', 'GB/s', 'reads/s', 'ROS', 'at most'):
        assert word in out
    assert list(tmp_path.iterdir()) == []       # what was written for it is gone
    given = yaml.safe_load(out[out.index('/**:'):])['/**']['ros__parameters']
    assert given['store'] == str(tmp_path.resolve() / 'model.store')
    assert given['memory']['dram_budget'].endswith('MB') and given['compute']['threads'] >= 1


@pytest.mark.parametrize(('free', 'budgets', 'rates', 'best'), [
    # 400 MB free, 200 of them to be taken: all of the small model, 100 MB of the large one. Flash
    # at 1 GB/s, memory at 10: 800 MB take 0.8 s.
    (400, [158, 200], [100.0, 1 / 0.8], 'small'),
    (4000, [158, 1008], [100.0, 1 / 0.09], 'large'),
    (110, [], [], None),
])
def test_what_is_not_in_memory_is_read(monkeypatch, free, budgets, rates, best) -> None:
    monkeypatch.setattr(candidates, 'CANDIDATES', (SMALL, LARGE))
    found = prospects(free * MB, 1e9, 1e10)
    assert [each.budget for each in found] == [budget * MB for budget in budgets]
    assert [each.most_rate for each in found] == pytest.approx(rates)
    assert SMALL.context_text == 'the model was trained for no more'
    assert LARGE.context_text == '20.5 MB more for 4096, 61.4 MB more for 8192'
    chosen = recommended(found)
    assert (chosen and chosen.candidate.name) == best
