"""A small shape: its files are one model, and hits are those of the routing that was planted."""

from pathlib import Path

from generation_cases import opened, opened_tightly
import numpy as np
import pytest

from bench.experts import shape, shape_worker
from bench.experts.planted_routing import planted_routing
from bench.experts.shape_files import SHAPES, RandomWeights, write_model_gguf, write_store
from bench.support.memory_cgroup import cgroup_version
from bench.window.replayer import replay
from bench.window.trace import NeuronTrace
from flash_llm_ros.checkpoint.open import open_checkpoint
from flash_llm_ros.store.neuron_reader import NeuronReader

TINY = {**SHAPES['olmoe'], 'num_hidden_layers': 3, 'hidden_size': 64, 'vocab_size': 500,
        'num_attention_heads': 2, 'num_key_value_heads': 2, 'head_dim': 32, 'num_experts': 24,
        'num_experts_per_tok': 2, 'intermediate_size': 96, 'max_position_embeddings': 512}
EMBEDDING = 11          # experts, in the place of which there may be rows of the embedding
JOB = {'tokens': list(range(300, 364)), 'prompts': [8, 64], 'new_tokens': 64,
       'recall': 0.0}


@pytest.fixture(scope='module')
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp('shape')
    weights = RandomWeights('tiny', TINY)
    write_store(weights, folder / 'tiny.store', lambda *_: None)
    write_model_gguf(weights, folder / 'tiny.gguf')
    return folder


def test_both_files_are_the_weights(folder: Path) -> None:
    weights, file = RandomWeights('tiny', TINY), open_checkpoint(folder / 'tiny.gguf')
    for name in weights.tensors:
        one, other = weights.rows(name), file.rows(name)
        assert np.corrcoef(one.ravel(), other.ravel())[0, 1] > 0.99 or np.ptp(one) == 0
    engine = opened(folder / 'tiny.store')
    with NeuronReader(engine._store) as reader:
        expert = np.concatenate([rows for _, rows in reader.parts(
            engine.geometry.section('expert_down', 2), 23)])
    engine.close()
    assert np.corrcoef(expert.ravel(), weights.rows('layers.2.expert_down', 23).ravel()
                       )[0, 1] > 0.99


def test_hits_are_those_of_the_routing(folder: Path) -> None:
    for opens, few in ((opened, False), (opened_tightly, True)):
        for planted in (True, False):
            engine = opens(folder / 'tiny.store', prefill_chunk=32)
            found = shape_worker.measured(engine, {**JOB, 'planted': planted})
            engine.close()
            assert found['prompt_tokens_per_second'].keys() == {8, 64}
            if not few:
                # All but rows of the embedding.
                assert found['held'] == 72 and found['hits'] > 0.9
                continue
            assert 0 < found['hits'] <= found['belady'] + 0.05 < 1
            assert found['held'] < 40 and found['reads'] > 0 and found['foreseen'] == 0
            if planted:
                trace = NeuronTrace('', 1, planted_routing(128, 3, 24, 2)).groups()
                least, most = (late_hits(trace, held)
                               for held in (max(found['held'] - EMBEDDING, 2), found['held']))
                assert least - 0.1 <= found['hits'] <= most + 0.1


def late_hits(trace: list[list[list[int]]], held: int) -> float:
    """Of a window of whole experts, over the last 32 of 128 tokens."""
    late = (replay('least_likely:16', held, trace).hits
            - replay('least_likely:16', held, trace[:96]).hits)
    return late / (32 * 3 * 2)


@pytest.mark.skipif(not cgroup_version(), reason='no writable memory cgroup here')
def test_engines_take_turns(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SHAPES, 'tiny', TINY)
    options = shape.parser().parse_args([
        'tiny', '40MB', '--folder', str(folder), '--prompts', '8', '32', '--tokens', '8',
        '--rounds', '1', '--routing', 'planted'])
    found = shape.measure(options).figures
    assert found['rows'][0]['side'] == 'ours, planted'
    for row in found['rows']:
        assert row['why_not'] is None and row['oom_kills'] == 0
        assert set(row['prompts']) == {'8', '32'}


def test_planted_routing_is_reused_as_published() -> None:
    used = planted_routing(300, 6, 128, 8)
    assert (used.sum(2) == 8).all()
    reuse = np.logical_and(used[1:], used[:-1]).sum() / used[1:].sum()
    assert reuse == pytest.approx(0.43, abs=0.02)
