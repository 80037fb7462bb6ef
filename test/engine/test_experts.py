"""An engine of experts: what its plan says, when it warns, and experts that are foreseen."""

from pathlib import Path
import re

from generation_cases import PLENTY, answer, opened_tightly
import numpy as np
import pytest

from bench.memory.budget import SLACK, figures_of, job_of
from bench.support.memory_cgroup import cgroup_version
from flash_llm_ros.cli.main import main
from flash_llm_ros.engine import Engine, EngineConfig
from flash_llm_ros.engine.model.feed_forward.read_ahead import ReadAhead
from flash_llm_ros.report.prospect import floors_of
from flash_llm_ros.store.flash_store import FlashStore

LAYERS, EXPERTS, ACTIVE = 3, 8, 2


def opened(store: Path, budget: int) -> tuple[Engine, list[str]]:
    lines: list[str] = []
    return Engine.open(EngineConfig(store, budget, context_length=512, lock_memory=False),
                       lines.append), lines


def held(engine: Engine) -> int:
    """How many experts the plan has room for."""
    note = next(row.note for row in engine.plan.rows if row.name == 'window')
    experts, of = map(int, re.search(r': (\d+) of (\d+) experts', note).groups())
    assert of == LAYERS * EXPERTS
    return experts


def test_a_window_without_room_for_a_token_is_warned_of(experts_store: Path) -> None:
    for _ in range(6):      # what loading takes is measured, and was less the last time
        tight = opened_tightly(experts_store)
        tight.close()
        engine, lines = opened(experts_store, tight.config.dram_budget)
        experts = held(engine)
        engine.close()
        if experts < LAYERS * ACTIVE:
            break
    warning = next(line for line in lines if 'a token uses' in line)
    assert f'holds {experts} of 24 experts and a token uses {LAYERS * ACTIVE}' in warning
    advised = int(re.search(r'dram_budget of (\d+) MB', warning).group(1))
    engine, lines = opened(experts_store, (advised + 1) * 1_000_000)
    assert held(engine) >= LAYERS * ACTIVE
    engine.close()
    assert not [line for line in lines if 'a token uses' in line]
    assert any("the model's own router chooses 2 of 8 experts a layer" in line for line in lines)


def test_the_least_budget_is_known_before(experts_store: Path) -> None:
    engine = opened_tightly(experts_store)
    engine.close()
    least = floors_of(FlashStore.open(experts_store), None, context=512)[0].budget
    assert least == pytest.approx(engine.config.dram_budget, abs=3_000_000)


def with_room(store: Path) -> Engine:
    return opened(store, PLENTY)[0]


def test_foreseen_experts_change_no_byte(experts_store: Path,
                                         monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither those of answers' tokens, with little room, nor those of a prompt."""
    monkeypatch.setattr(ReadAhead, 'end', lambda self: None)
    found = []
    for opens, ranks, of_tokens in ((opened_tightly, 0, False), (opened_tightly, ACTIVE, True),
                                    (with_room, ACTIVE, False)):
        monkeypatch.setattr(ReadAhead, 'begin', lambda self, of_tokens=of_tokens: of_tokens)
        engine = opens(experts_store)
        engine.model.feed_forward.ranks = ranks         # however often they are right
        before = engine.stats()
        answers = [answer(engine, prompt, max_tokens=20).tokens for prompt in ('Hello', 'x')]
        used = {name: count - before[name] for name, count in engine.stats().items()}
        engine.close()
        assert (used['prefetched'] > 0) == (used['prefetch_used'] > 0) == (ranks > 0)
        assert used['prefetch_used'] <= used['prefetched']
        found.append((answers, used['hits'] + used['misses'] + used['prefetch_used']))
    assert found[0] == found[1] == found[2]


def test_the_copies_answer_nearly_as_their_original(int8_store: Path,
                                                    experts_store: Path) -> None:
    """The blocks of one random checkpoint, and eight of each scaled by 3 % up or down."""
    found = []
    for store in (int8_store, experts_store):
        engine, _ = opened(store, 60_000_000)
        logits = np.empty((60, 258), np.float32)
        engine.model.forward(np.arange(20, 80), 0, True, logits)
        engine.close()
        found.append(logits.ravel())
    assert 0.99 < np.corrcoef(*found)[0, 1] < 0.99999


def test_it_is_described(experts_store: Path, tmp_path: Path,
                         capsys: pytest.CaptureFixture[str]) -> None:
    assert main(['inspect', str(experts_store)]) == 0
    assert 'each of 2 of 8 experts of 256 neurons (silu)' in capsys.readouterr().out
    assert main(['report', str(experts_store), '--out', str(tmp_path / 'page.html')]) == 0
    page = (tmp_path / 'page.html').read_text()
    assert '2 of 8 experts of 256 neurons' in page and 'expert_gate_up of layer 2' in page


@pytest.mark.slow
@pytest.mark.skipif(not cgroup_version(), reason='no writable memory cgroup here')
def test_the_budget_holds_under_a_kernel_cap(experts_store: Path) -> None:
    figures = figures_of(job_of(experts_store, 20_000_000, 'exact', 48, threads=2))
    assert figures['oom_kills'] == 0 and figures['generated'] == 48
    assert figures['above_bare'] < 20_000_000 + SLACK
