"""The blocks of a small shape behind windows of three sizes, and routing as it was planted."""

from pathlib import Path

import numpy as np
import pytest

from bench.experts import shape
from bench.experts.planted_routing import planted_routing
from bench.window.replayer import replay
from bench.window.trace import NeuronTrace

TINY = shape.Shape(3, 64, 96, 8, 2)
EXPERT = 3                              # groups


def figures(folder: Path, monkeypatch: pytest.MonkeyPatch, experts: int) -> dict[str, dict]:
    monkeypatch.setitem(shape.SHAPES, 'tiny', TINY)
    geometry = shape.written(folder / 'neurons.bin', TINY)
    assert geometry.sections[0].stride == EXPERT
    window = f'{experts * EXPERT * geometry.group_bytes}B'
    options = shape.parser().parse_args(['tiny', window, '--folder', str(folder)])
    return shape.measure(options).figures


def test_hits_and_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = figures(tmp_path, monkeypatch, 24)['planted']
    assert (whole['hits'], whole['belady'], whole['reads']) == (1, 1, 0)
    for routing, found in figures(tmp_path, monkeypatch, 12).items():
        used = planted_routing(64, 3, 8, 2, **({} if routing == 'planted' else
                                               {'heat': 0, 'memory': 0}))
        trace = NeuronTrace('', 1, used).groups()
        policy = 'least_likely:16'
        late = replay(policy, 12, trace).hits - replay(policy, 12, trace[:32]).hits
        # The core's window holds parts of experts, too.
        assert found['hits'] == pytest.approx(late / (32 * 3 * 2), abs=0.1)
        assert 0 < found['hits'] <= found['belady'] + 0.05 < 1
        missed = (1 - found['hits']) * 3 * 2
        assert missed / 2 <= found['reads'] <= missed * EXPERT


def test_planted_routing_is_reused_as_published() -> None:
    used = planted_routing(300, 6, 128, 8)
    assert (used.sum(2) == 8).all()
    reuse = np.logical_and(used[1:], used[:-1]).sum() / used[1:].sum()
    assert reuse == pytest.approx(0.43, abs=0.02)
