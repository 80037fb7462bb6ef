"""The budget is a promise of every opening in a process, whatever earlier ones have left there."""

import json
from pathlib import Path
import subprocess
import sys
from typing import Any

from opened_again import FALL_BACK
import pytest

from flash_llm_ros.engine.memory import footprint
from flash_llm_ros.engine.memory.footprint import Footprint

MB = 1_000_000
TIMES = 5
pytestmark = pytest.mark.timeout(300)


def openings(store: Path, mode: str) -> list[dict[str, Any]]:
    script = Path(__file__).parents[1] / 'support/opened_again.py'
    done = subprocess.run([sys.executable, script, store, mode, str(TIMES)], check=True,
                          stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout)


@pytest.fixture(scope='module')
def found(planted_store: Path) -> dict[str, list[dict[str, Any]]]:
    """Five openings in a process of their own, in each way."""
    return {way: openings(planted_store, way) for way in ('exact', 'gated', FALL_BACK)}


@pytest.mark.parametrize('way', ['exact', 'gated', FALL_BACK])
def test_libraries_count_every_time(found: dict[str, list[dict[str, Any]]], way: str) -> None:
    """What is resident is planned: of a process's first opening, and of all that follow."""
    mode = 'exact' if way == FALL_BACK else way
    fresh = found[mode][0]['resident weights']
    for one in found[way]:
        assert one['mode'] == mode and one['resident'] <= one['planned']
        assert fresh - MB // 2 <= one['resident weights'] <= fresh + 4 * MB


@pytest.mark.parametrize('way', ['exact', 'gated', FALL_BACK])
def test_what_is_closed_goes(found: dict[str, list[dict[str, Any]]], way: str) -> None:
    """But for libraries, code and pages of the heap that nothing can be moved out of."""
    left = [one['after closing'] for one in found[way]]
    assert left[0] < 20 * MB and left[-1] - left[1] < 2 * MB


@pytest.mark.parametrize(('grown', 'taken'), [
    (0, 27 + 7), (-3, 27 + 4), (3, 26 + 8), (500, 26 + 8), (-50, 27)])
def test_what_else_the_process_takes_is_its_own(monkeypatch: pytest.MonkeyPatch, grown: int,
                                                taken: int) -> None:
    """Loading 26 MB with libraries of 8 MB, 7 of which stay; then again, but for the libraries."""
    resident = iter(MB * size for size in (100, 134, 107 + grown, 107 + grown + 27))
    monkeypatch.setattr(footprint, 'resident_bytes', lambda: next(resident))
    assert Footprint().measured(26 * MB) == 34 * MB
    assert Footprint().measured(26 * MB) == taken * MB
