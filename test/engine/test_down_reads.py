"""Down columns in a stream or group by group: the same text, and the way that is cheaper."""

from pathlib import Path

from core_cases import Setting, each_core
from core_oracle import write_neuron_file
import numpy as np
import pytest

from flash_llm_ros.cli.main import main
from flash_llm_ros.engine import Engine, EngineConfig, GenerationRequest
from flash_llm_ros.engine.down_reads import streams_down
from flash_llm_ros.engine.neuron_trace import NeuronTrace
from flash_llm_ros.store.device_profile import ReadCosts
from flash_llm_ros.store.errors import FlashLlmError
from flash_llm_ros.store.geometry import model_sections, plan_geometry


@each_core
@pytest.mark.parametrize('codec', ['int8', 'int4', 'fp16'])
def test_both_ways_give_the_same_bytes(tmp_path, core_class, codec):
    rng = np.random.default_rng(3)
    made = write_neuron_file(tmp_path / 'neurons.bin', rng, codec, 70, 1024, [(211, 0, 1)])
    for pinned in (0, 5, made.groups):
        core = Setting({0: pinned}, (3, 2), 12, [0]).open(made, core_class)
        for share in (0.0, 0.02, 0.5, 1.0):
            h = rng.standard_normal(211).astype(np.float32)
            active = (rng.random(211) < share).astype(np.uint8)
            start = rng.standard_normal(70).astype(np.float32)
            streamed, scattered = start.copy(), start.copy()
            core.add_rows_sparse(0, h, active, streamed, True)
            core.add_rows_sparse(0, h, active, scattered)
            assert streamed.tobytes() == scattered.tobytes()
            exact = start + (h * active).astype(np.float64) @ made.sections[0].weights[:, 0]
            np.testing.assert_allclose(streamed, exact, rtol=1e-4, atol=1e-4)
        core.close()


def answer(store: Path, down_reads: str) -> tuple[list[int], dict[str, int]]:
    engine = Engine.open(EngineConfig(store, 20_000_000, 'sparse', down_reads=down_reads,
                                      lock_memory=False))
    try:
        generation = engine.start(GenerationRequest('Where is the drone?', raw=True,
                                                    max_tokens=20))
        for _ in generation:
            pass
        return generation.tokens, engine.stats()
    finally:
        engine.close()


def test_both_ways_give_the_same_text(int8_store):
    streamed, with_stream = answer(int8_store, 'stream')
    scattered, without = answer(int8_store, 'scattered')
    assert streamed == scattered
    assert with_stream['prefetched'] == 0
    assert with_stream['active_neurons'] == without['active_neurons']


def test_a_stream_where_nearly_all_groups_are_needed():
    geometry = plan_geometry(576, 'int8', model_sections('split', 2, 1536, 1000, True))
    assert geometry.section('down', 0).bundles_per_group == 10
    cheap_requests = ReadCosts(1e-9, 1e-9, 2**20)
    assert streams_down(geometry, 0.5, None)
    assert streams_down(geometry, 0.9, None)
    assert streams_down(geometry, 0.0, cheap_requests)
    assert not streams_down(geometry, 0.9, cheap_requests)
    assert streams_down(geometry, 0.9, ReadCosts(1e-4, 1e-9, 2**20))


def test_a_trace_is_recorded_and_read_back(int8_store, tmp_path, capsys):
    text, out = tmp_path / 'text.txt', tmp_path / 'trace.npz'
    text.write_text('The drone turns left, then right. ' * 20)
    assert main(['trace', str(int8_store), '--text', str(text), '--out', str(out), '--tokens',
                 '9', '--budget', '20MB', '--sparsity', '0.5']) == 0
    assert '9 tokens' in capsys.readouterr().out
    trace = NeuronTrace.load(out)
    uses = [event for event in trace if not event.predicted]
    assert len(uses) == 9 * len(trace.used_sections)
    assert any(event.predicted for event in trace)
    sections, _, ends, groups = trace.groups(predictions=False)
    begin = 0
    for event, section, end in zip(uses, sections, ends, strict=True):
        size = int(trace.bundles_per_group[section])
        needed = {int(trace.first_group[section]) + neuron // size
                  for neuron in range(len(event.neurons)) if event.neurons[neuron]}
        assert set(groups[begin:end].tolist()) == needed
        begin = end
    short = trace.first(4)
    assert short.tokens == 4
    assert [event.section for event in short if not event.predicted] == sections[
        :4 * len(trace.used_sections)].tolist()
    text.write_bytes(b'no trace')
    with pytest.raises(FlashLlmError, match='no trace'):
        NeuronTrace.load(text)
