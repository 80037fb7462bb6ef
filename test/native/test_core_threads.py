"""The threads that compute: the same bytes from any number, and none that spins or stays."""

import os
import signal
import time

from core_cases import Setting
from core_oracle import gated, rounded, ungated, write_neuron_file
import numpy as np
import pytest

from flash_llm_ros._native import NeuronCore
from flash_llm_ros.engine.memory.core import core_scratch_bytes
from flash_llm_ros.store.codec import row_codec
from flash_llm_ros.store.geometry import Geometry, Section

# Larger than what one thread takes at a time, and than one segment of a sum.
DIM = 129
PARTS = [(3000, 0, 2), (5200, 0, 1, None, 97), (2200, 0, 3), (2600, 0, 2),
         (DIM, 0, 1, None, 3000)]


@pytest.fixture(scope='module', params=['int8', 'int4', 'fp16'])
def made(request, tmp_path_factory):
    path = tmp_path_factory.mktemp('threads') / 'neurons.bin'
    return write_neuron_file(path, np.random.default_rng(7), request.param, DIM, 8192, PARTS)


def results(core, made):
    """Each compute call on sections of several shapes: name -> array."""
    rng = np.random.default_rng(11)
    gate_up, down, gated_bundle, bundle, rows = made.sections
    found = {}
    for tokens in (1, 2, 19):
        x = rng.standard_normal((tokens, DIM)).astype(np.float32)
        meant = rounded(x, made.codec)
        h = np.empty((tokens, gate_up.bundles), np.float32)
        core.gate_up(0, x, h, 'silu')
        found['gate_up', tokens] = h, gated(gate_up, meant, 'silu')
        dots = np.empty((tokens, down.bundles), np.float32)
        h = rng.standard_normal((tokens, down.dim)).astype(np.float32)
        core.rows_dot(1, h, dots)
        wanted = rounded(h, made.codec) @ down.weights[:, 0].T
        found['rows_dot', tokens] = dots.copy(), wanted
        core.rows_dot(1, h, dots, add=True)
        found['added', tokens] = dots, 2 * wanted
        before = rng.standard_normal((tokens, rows.bundles)).astype(np.float32)
        out, h = before.copy(), np.empty((tokens, gate_up.bundles), np.float32)
        core.gate_up_down(0, 4, x, h, out, 'silu')
        found['gate_up_down', tokens] = (
            out, before + rounded(found['gate_up', tokens][0], made.codec) @ rows.weights[:, 0].T)
        before = rng.standard_normal((tokens, DIM)).astype(np.float32)
        out = before.copy()
        core.bundled(2, x, out, 'silu')
        found['bundled', tokens] = (
            out, before + gated(gated_bundle, meant, 'silu') @ gated_bundle.weights[:, 2])
        bias = rng.standard_normal(bundle.bundles).astype(np.float32)
        out = before.copy()
        core.bundled(3, x, out, 'relu', bias)
        found['biased', tokens] = (
            out, before + ungated(bundle, meant, 'relu', bias) @ bundle.weights[:, 1])
    for share in (0.01, 0.2, 1):
        active = (rng.random(gated_bundle.bundles) < share).astype(np.uint8)
        x = rng.standard_normal(DIM).astype(np.float32)
        out = np.zeros(DIM, np.float32)
        core.bundled_sparse(2, x, active, out, 'silu')
        wanted = gated(gated_bundle, rounded(x[None], made.codec), 'silu')[0] * active
        found['bundled_sparse', share] = out, wanted @ gated_bundle.weights[:, 2]
    return found


def test_results_do_not_depend_on_the_threads(made):
    everywhere = {index: part.groups for index, part in enumerate(made.sections)}
    core = Setting(everywhere).open(made, NeuronCore)
    reference = results(core, made)
    core.close()
    for name, (array, wanted) in reference.items():
        scale = np.abs(wanted).max() + 1
        assert np.abs(array - wanted).max() < 2e-5 * scale, name
    rng = np.random.default_rng(12)
    settings = [Setting(everywhere, options={'threads': threads}) for threads in (2, 3, 7)]
    settings += [Setting.random(rng, made) for _ in range(6)]
    for setting in settings:
        core = setting.open(made, NeuronCore)
        for name, (array, _) in results(core, made).items():
            assert array.tobytes() == reference[name][0].tobytes(), (name, setting)
        core.close()


def compute_threads():
    """Ids of this process's threads that compute for a core."""
    found = []
    for thread in os.listdir('/proc/self/task'):
        with open(f'/proc/self/task/{thread}/comm') as file:
            if file.read().strip() == 'flash_compute':
                found.append(thread)
    return found


def processor_ticks(thread):
    with open(f'/proc/self/task/{thread}/stat') as file:
        fields = file.read().rsplit(')', 1)[1].split()
    return int(fields[11]) + int(fields[12])


def test_other_threads_work_then_sleep(made):
    everywhere = {index: part.groups for index, part in enumerate(made.sections)}
    assert compute_threads() == []
    core = Setting(everywhere, options={'threads': 3}).open(made, NeuronCore)
    workers = compute_threads()
    assert len(workers) == 2
    x = np.ones((64, DIM), np.float32)
    h = np.empty((64, 3000), np.float32)
    deadline = time.monotonic() + 60
    while not all(processor_ticks(thread) for thread in workers):
        core.gate_up(0, x, h, 'silu')
        assert time.monotonic() < deadline, 'a thread does not take part'
    time.sleep(0.1)
    before = [processor_ticks(thread) for thread in workers]
    time.sleep(0.5)
    assert [processor_ticks(thread) for thread in workers] == before
    core.close()
    assert compute_threads() == []


def test_signals_are_left_to_the_interpreter(made):
    core = Setting(options={'threads': 2}).open(made, NeuronCore)
    worker, = compute_threads()
    with open(f'/proc/self/task/{worker}/status') as file:
        blocked = next(line.split()[1] for line in file if line.startswith('SigBlk'))
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        assert int(blocked, 16) >> (number - 1) & 1
    core.close()


@pytest.mark.parametrize('threads', [1, 2, 5])
@pytest.mark.parametrize(('dim', 'codec'), [(64, 'int8'), (1536, 'int4'), (900, 'fp16'),
                                            (8192, 'int4'), (576, 'fp16 int4')])
def test_the_plan_counts_the_scratch_memory(tmp_path, dim, codec, threads):
    """What Engine takes from the budget for it is enough, and not far too much."""
    group_bytes = 65536
    codecs = (codec.split() * 2)[:2]
    made = write_neuron_file(tmp_path / 'neurons.bin', np.random.default_rng(1), codecs[0], dim,
                             group_bytes, [(3, 0, 3), (3, 1, 1, codecs[1], 3 * dim)])
    geometry = Geometry(512, group_bytes, dim, (
        Section('bundle', 0, 3, 3, 3, 0, row_codec(codecs[0], dim)),
        Section('down', 0, 1, 3, 1, 1, row_codec(codecs[1], 3 * dim))))
    core = Setting(options={'threads': threads}).open(made, NeuronCore)
    for tokens in (1, 40):
        x = np.ones((tokens, dim), np.float32)
        core.bundled(0, x, np.zeros_like(x), 'silu')
        core.rows_dot(1, np.tile(x, 3), np.empty((tokens, 3), np.float32))
        planned = core_scratch_bytes(geometry, threads, tokens)
        assert core.scratch_bytes <= planned < 3 * core.scratch_bytes + 2**20
    core.close()
