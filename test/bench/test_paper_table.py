"""bench/paper/table.py end to end on the small shape: its rows read what they are said to read."""

from collections import OrderedDict
import json
from pathlib import Path
import subprocess
import sys

import numpy as np
import pytest

from bench.paper.opt_files import OptShape, describe, prepare, weights
from bench.paper.opt_model import OptModel, techniques
from bench.paper.planted_activity import PlantedActivity
from flash_llm_ros.cli.progress import Steps

ROOT = Path(__file__).parents[2]
TINY = OptShape(dim=256, ffn=512, layers=3, heads=4, vocabulary=1100, rank=32, last_rank=64)
ROW, BUNDLE = 2560, 4608            # bytes of groups of the small shape: 2048 and 4096, padded
LAYERS, NEURONS, RING = 8, 4096, 9 << 20
TOKENS = 3
pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture(scope='module')
def report(tmp_path_factory):
    """What --json holds after a run of one round, and the last line that was printed."""
    pytest.importorskip('flash_llm_ros._native')     # it measures the device through it
    folder = tmp_path_factory.mktemp('paper')
    command = [sys.executable, '-m', 'bench.paper.table', '--small', '--folder',
               folder / 'files', '--rounds', '1', '--tokens', str(TOKENS),
               '--json', folder / 'figures.json']
    done = subprocess.run(command, capture_output=True, text=True, timeout=250, check=False,
                          cwd=ROOT)
    assert done.returncode == 0, done.stderr
    figures = json.loads((folder / 'figures.json').read_text())
    return {row['name']: row for row in figures['figures']['rows']}, done.stdout.splitlines()[-1]


@pytest.fixture(scope='module')
def activity():
    return PlantedActivity(LAYERS, NEURONS).predicted(10 + TOKENS)


def least_recent_misses(activity, kept):
    """Neurons to be fetched for each of the last tokens, when all layers share `kept` places."""
    window, missed = OrderedDict(), np.zeros(len(activity), int)
    for token, layers in enumerate(activity):
        for layer, wanted in enumerate(layers):
            for neuron in np.flatnonzero(wanted):
                missed[token] += (layer, neuron) not in window
                window[layer, neuron] = True
                window.move_to_end((layer, neuron))
            while len(window) > kept:
                window.popitem(last=False)
    return missed[-TOKENS:]


def test_naive_reads_the_model_for_every_token(report):
    rows, _ = report
    model = BUNDLE * (LAYERS * (4 * 1024 // 2 + NEURONS) + 8000 // 2)
    assert rows['naive']['flash_bytes'] == pytest.approx(model, abs=RING)
    assert rows['naive']['dram_bytes'] <= RING


def test_hybrid_reads_half_of_it(report):
    rows, _ = report
    model = BUNDLE * (LAYERS * (4 * 1024 // 2 + NEURONS) + 8000 // 2)
    assert rows['hybrid']['flash_bytes'] == pytest.approx(model / 2, abs=RING)
    assert rows['hybrid']['dram_bytes'] == pytest.approx(model / 2, abs=RING)


def test_a_predictor_reads_the_predicted_rows_nearly_all_anew(report, activity):
    """There is room for one layer's; of layers that need less a few stay until the next token."""
    rows, _ = report
    expected = np.median(activity[-TOKENS:].sum(axis=(1, 2))) * 2 * ROW
    assert 0.98 * expected < rows['+ predictor']['flash_bytes'] <= expected


@pytest.mark.parametrize(('name', 'neuron_bytes'), [('+ window', 2 * ROW), ('+ bundling', BUNDLE)])
def test_a_window_reads_what_brute_force_misses(report, activity, name, neuron_bytes):
    """A better policy than least recently used may read less, but not nothing."""
    rows, _ = report
    kept = round(0.24 * LAYERS * NEURONS)
    expected = np.median(least_recent_misses(activity, kept)) * neuron_bytes
    assert 0.7 * expected < rows[name]['flash_bytes'] < 1.03 * expected
    resident = BUNDLE * (LAYERS * 4 * 1024 // 2 + 8000 // 2)
    assert rows[name]['dram_bytes'] > resident + kept * neuron_bytes


def test_bundling_halves_the_reads(report):
    rows, _ = report
    assert rows['+ bundling']['flash_reads'] == pytest.approx(
        rows['+ window']['flash_reads'] / 2, rel=0.05)


def test_parts_of_a_token_add_up_and_the_last_line_says_the_gain(report):
    rows, last_line = report
    for row in rows.values():
        assert row['tokens'] == len(row['samples'])
        for token in row['samples']:
            assert token['wait_ns'] + token['claim_ns'] <= 1e9 * token['seconds']
        assert row['floor_ms'] > 0
        assert row['io_ms'] <= row['io_p95_ms']
    ahead = rows['+ read ahead']
    assert rows['+ bundling']['flash_bytes'] < ahead['flash_bytes']
    assert ahead['flash_bytes'] < 2 * rows['+ bundling']['flash_bytes']
    gain = rows['naive']['total_ms'] / rows['+ bundling']['total_ms']
    assert f' {gain:.1f}x (paper: 4.8x)' in last_line


def reference_ffn(layer, x, wanted):
    """relu(up x) down over the wanted neurons, in float64 from the weights."""
    up, down = (weights(0, name, layer, 0, TINY.ffn, TINY.dim).view(np.float16).astype(np.float64)
                for name in ('up', 'down'))
    return (np.maximum(up @ x, 0) * wanted) @ down


def test_all_techniques_compute_the_same_layer(tmp_path):
    """Bundled or not, streamed or cached: what a layer adds is what NumPy says."""
    files = describe(tmp_path, TINY)
    with Steps() as steps:
        prepare(files, steps)
    x = np.random.default_rng(0).standard_normal((1, TINY.dim)).astype(np.float32)
    planted = PlantedActivity(3, TINY.ffn).next()
    some = planted.predicted
    for technique in techniques(files):
        model = OptModel(files, technique, most_predicted=int(some.sum(axis=1).max()))
        for layer in range(TINY.layers):
            wanted = some[layer] if technique.predicted else np.ones(TINY.ffn)
            out = np.zeros((1, TINY.dim), np.float32)
            model.feed_forward(layer, x, planted, out)
            np.testing.assert_allclose(out[0], reference_ffn(layer, x[0], wanted), atol=2e-3,
                                       err_msg=technique.name)
        model.close()
