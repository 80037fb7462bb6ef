"""What the core computes, against float64 answers from the rows that were written to the file."""

import sys

from core_cases import KERNELS, Setting, each_kernels, runs_here
from core_oracle import ACTIVATIONS, gated, plain_group, rounded, ungated, write_neuron_file
import numpy as np
import pytest
from refusals import assert_error

import flash_llm_ros
from flash_llm_ros import _native
from flash_llm_ros._native import NeuronCore
from flash_llm_ros.engine.memory.core import load_core_class
from flash_llm_ros.store.errors import ErrorCode
from flash_llm_ros.store.manifest import FORMAT_VERSION


@pytest.fixture
def chosen(monkeypatch, kernels):
    monkeypatch.setenv('FLASH_LLM_ROS_KERNELS', kernels)
    return kernels


def assert_close(found, wanted, terms):
    """float32 against float64: `terms` [same shape] sums the magnitudes of what was added."""
    error = np.abs(found - wanted)
    limit = 1e-5 * terms + 1e-6
    assert (error <= limit).all(), f'worst {np.max(error - limit)} over the limit'


# dim, codec, group_bytes, and bundles of the sections gate_up, down, bundle, rows
SHAPES = [
    (1, 'int8', 512, (3, 40, 5, 50)),
    (1, 'fp16', 512, (3, 300, 5, 500)),
    (31, 'int8', 512, (20, 33, 10, 7)),
    (32, 'int8', 512, (20, 33, 10, 7)),
    (33, 'fp16', 1024, (25, 1, 13, 64)),
    (64, 'fp16', 1536, (25, 29, 13, 64)),
    (70, 'int8', 1024, (33, 41, 20, 50)),
    (100, 'fp16', 2048, (33, 41, 20, 50)),
    (160, 'int8', 4096, (60, 90, 31, 128)),
    (576, 'int8', 6144, (26, 40, 14, 31)),
    (576, 'fp16', 11776, (26, 40, 14, 31)),
    (1000, 'int8', 4096, (7, 9, 4, 11)),
    (1, 'int4', 512, (3, 80, 5, 50)),
    (31, 'int4', 512, (40, 33, 10, 7)),
    (32, 'int4', 512, (20, 70, 25, 64)),
    (47, 'int4', 512, (20, 33, 10, 70)),
    (70, 'int4', 1024, (33, 41, 20, 50)),
    (96, 'int4', 1536, (60, 41, 31, 50)),
    (160, 'int4', 4096, (60, 90, 31, 128)),
    (576, 'int4', 4096, (26, 40, 14, 31)),
    (1000, 'int4', 4096, (7, 9, 4, 11)),
    # a codec for each section
    (70, 'int4 int8 fp16 int4', 1024, (33, 41, 14, 50)),
    (160, 'int4 fp16 int8 int8', 4096, (60, 90, 31, 128)),
    (576, 'fp16 int4 int4 int8', 6144, (26, 40, 14, 31)),
]


@each_kernels
@pytest.mark.parametrize(('dim', 'codec', 'group_bytes', 'bundles'), SHAPES)
def test_against_float64(tmp_path, chosen, dim, codec, group_bytes, bundles):
    rng = np.random.default_rng(dim + len(codec))
    codecs = (codec.split() * 4)[:4]
    made = write_neuron_file(tmp_path / 'neurons.bin', rng, codecs[0], dim, group_bytes, [
        (bundles[0], 0, 2, codecs[0]), (bundles[1], 0, 1, codecs[1], max(1, dim * 3 // 4)),
        (bundles[2], 0, 3, codecs[2]), (bundles[3], 0, 1, codecs[3])])
    core = Setting.random(rng, made).open(made, NeuronCore)
    assert core.kernels == chosen
    gate_up, down, bundle, table = made.sections
    for tokens in (1, 2, 3, 4, 7, 16, 17, 37):
        x = rng.standard_normal((tokens, dim)).astype(np.float32)
        for activation in ('silu', 'relu'):
            h = np.full((tokens, gate_up.bundles), np.nan, np.float32)
            core.gate_up(0, x, h, activation)
            scale = ((np.abs(x) @ np.abs(gate_up.weights[:, 0]).T + 1)
                     * (np.abs(x) @ np.abs(gate_up.weights[:, 1]).T + 1))
            assert_close(h, gated(gate_up, rounded(x, gate_up.codec), activation), scale)

            h = gated(bundle, rounded(x, bundle.codec), activation)
            before = rng.standard_normal((tokens, dim)).astype(np.float32)
            out = before.copy()
            core.bundled(2, x, out, activation)
            magnitudes = ((np.abs(x) @ np.abs(bundle.weights[:, 0]).T + 1)
                          * (np.abs(x) @ np.abs(bundle.weights[:, 1]).T + 1))
            assert_close(out, before + h @ bundle.weights[:, 2],
                         np.abs(before) + magnitudes @ np.abs(bundle.weights[:, 2]))

        logits = np.full((tokens, table.bundles), np.nan, np.float32)
        core.rows_dot(3, x, logits)
        assert_close(logits, rounded(x, table.codec) @ table.weights[:, 0].T,
                     np.abs(x) @ np.abs(table.weights[:, 0]).T)

        h = rng.standard_normal((tokens, down.dim)).astype(np.float32)
        before = rng.standard_normal((tokens, down.bundles)).astype(np.float32)
        out = before.copy()
        core.rows_dot(1, h, out, add=True)
        assert_close(out, before + rounded(h, down.codec) @ down.weights[:, 0].T,
                     np.abs(before) + np.abs(h) @ np.abs(down.weights[:, 0]).T)

    for share in (0, 0.1, 0.5, 1):
        used = rng.random(bundle.bundles) < share
        x = rng.standard_normal(dim).astype(np.float32)
        wanted_h = gated(bundle, rounded(x[None], bundle.codec), 'silu')[0] * used
        magnitudes = ((np.abs(x) @ np.abs(bundle.weights[:, 0]).T + 1)
                      * (np.abs(x) @ np.abs(bundle.weights[:, 1]).T + 1)) * used
        before = rng.standard_normal(dim).astype(np.float32)
        out = before.copy()
        core.bundled_sparse(2, x, used.astype(np.uint8) * 3, out, 'silu')  # all but 0 is active
        assert_close(out, before + wanted_h @ bundle.weights[:, 2],
                     np.abs(before) + magnitudes @ np.abs(bundle.weights[:, 2]))

    ids = rng.integers(0, table.bundles, 40)
    rows = np.full((40, dim), np.nan, np.float32)
    core.read_rows(3, ids, rows)
    assert np.array_equal(rows, table.weights[ids, 0].astype(np.float32))  # decoding is exact
    core.read_rows(3, ids[:0], rows[:0])
    core.close()


@pytest.mark.parametrize('activation', ACTIVATIONS)
def test_activations_against_float64(tmp_path, activation):
    rng = np.random.default_rng(8)
    made = write_neuron_file(tmp_path / 'neurons.bin', rng, 'fp16', 64, 1536,
                             [(60, 0, 3), (60, 0, 2)])
    core = Setting.random(rng, made).open(made, NeuronCore)
    x = (rng.standard_normal((9, 64)) * np.logspace(-2, 1, 9)[:, None]).astype(np.float32)
    for index, neurons in enumerate((gated, ungated)):
        part, out = made.sections[index], np.zeros((9, 64), np.float32)
        core.bundled(index, x, out, activation)
        h, down = neurons(part, x, activation), part.weights[:, -1]
        assert_close(out, h @ down, (np.abs(h) + 1) @ np.abs(down))
    core.close()


@each_kernels
@pytest.mark.parametrize(('dim', 'codec', 'group_bytes', 'bundles'), [
    (70, 'int8', 1024, 41), (160, 'int4', 1024, 90), (33, 'fp16', 512, 20),
    (1000, 'fp16', 8192, 17),
])
def test_ungated_bundles_against_float64(tmp_path, chosen, dim, codec, group_bytes,
                                         bundles):
    """Bundles of an up row and a down column, with and without a bias before the activation."""
    rng = np.random.default_rng(dim)
    made = write_neuron_file(tmp_path / 'neurons.bin', rng, codec, dim, group_bytes,
                             [(3, 0, 1), (bundles, 0, 2)])
    part = made.sections[1]
    core = Setting.random(rng, made).open(made, NeuronCore)
    up, down = np.abs(part.weights[:, 0]), np.abs(part.weights[:, 1])
    biases = rng.standard_normal(bundles).astype(np.float32)
    for bias in (None, biases):
        for tokens in (1, 2, 5, 16, 23):
            x = rng.standard_normal((tokens, dim)).astype(np.float32)
            before = rng.standard_normal((tokens, dim)).astype(np.float32)
            for activation in ('relu', 'silu'):
                out = before.copy()
                core.bundled(1, x, out, activation, bias)
                wanted = ungated(part, rounded(x, codec), activation, bias) @ part.weights[:, 1]
                assert_close(out, before + wanted,
                             np.abs(before) + (np.abs(x) @ up.T + np.abs(biases)) @ down)
        for share in (0, 0.1, 0.6, 1):
            active = (rng.random(bundles) < share).astype(np.uint8) * 2
            x = rng.standard_normal(dim).astype(np.float32)
            wanted_h = ungated(part, rounded(x[None], codec), 'relu', bias)[0] * (active > 0)
            magnitudes = (np.abs(x) @ up.T + np.abs(biases)) * (active > 0)
            out = np.zeros(dim, np.float32)
            core.bundled_sparse(1, x, active, out, 'relu', bias)
            assert_close(out, wanted_h @ part.weights[:, 1], magnitudes @ down)
    core.close()


@each_kernels
@pytest.mark.parametrize('rows', [2, 3])
def test_relu_with_a_threshold_against_float64(tmp_path, chosen, rows):
    """FATReLU: what is not above the threshold is 0, gated and not."""
    rng = np.random.default_rng(rows)
    made = write_neuron_file(tmp_path / 'neurons.bin', rng, 'fp16', 70, 1024,
                             [(3, 0, 1), (41, 0, rows)])
    part = made.sections[1]
    core = Setting.random(rng, made).open(made, NeuronCore)
    for tokens in (1, 3):
        x = rng.standard_normal((tokens, 70)).astype(np.float32)
        z = x.astype(np.float64) @ part.weights[:, 0].T
        ordered = np.sort(z[z > 0])
        widest = len(ordered) // 4 + np.argmax(np.diff(ordered[len(ordered) // 4:]))
        threshold = float(ordered[widest:widest + 2].mean())     # nothing is rounded over it
        h = np.where(z > threshold, z, 0)
        if rows == 3:
            h *= x.astype(np.float64) @ part.weights[:, 1].T
        wanted, out = h @ part.weights[:, -1], np.zeros((tokens, 70), np.float32)
        core.bundled(1, x, out, 'relu', None, threshold)
        np.testing.assert_allclose(out, wanted, rtol=1e-3, atol=1e-4 * np.abs(wanted).max())
        sparse = np.zeros(70, np.float32)
        core.bundled_sparse(1, x[0], np.ones(41, np.uint8), sparse, 'relu', None, threshold)
        np.testing.assert_allclose(sparse, wanted[0], rtol=1e-3, atol=1e-4 * np.abs(wanted).max())
    core.close()


@each_kernels
@pytest.mark.parametrize('codec', ['int8', 'int4'])
@pytest.mark.parametrize('tokens', [1, 3, 11])
def test_inputs_of_any_size(tmp_path, chosen, codec, tokens):
    """Blocks of zeros, of the smallest and largest floats, and what is not finite at all."""
    rng = np.random.default_rng(8)
    made = write_neuron_file(tmp_path / 'neurons.bin', rng, codec, 150, 1024, [(37, 0, 1)])
    table = made.sections[0].weights[:, 0]
    core = Setting().open(made, NeuronCore)
    x = rng.standard_normal((tokens, 150)).astype(np.float32)
    x[:, 32:64] = 0
    x[:, 64:96] *= 1e-33
    x[:, 96:128] *= 1e30
    x[:, 100] = 3e37
    x[-1, 64:96] = 1e-30
    out = np.full((tokens, 37), np.nan, np.float32)
    core.rows_dot(0, x, out)
    assert_close(out, rounded(x, codec) @ table.T, np.abs(x.astype(np.float64)) @ np.abs(table).T)
    for odd in (np.nan, np.inf, -np.inf):
        x[0, 149] = odd
        core.rows_dot(0, x, out)
        assert np.isnan(out[0]).all()
        assert np.isfinite(out[1:]).all()


@each_kernels
@pytest.mark.parametrize('codec', ['int8', 'int4'])
@pytest.mark.parametrize('tokens', [1, 4])
def test_no_sum_overflows(tmp_path, chosen, codec, tokens):
    """The largest quants and steps, all of one sign or by turns, where narrow sums would wrap."""
    dim = 512
    made = write_neuron_file(tmp_path / 'neurons.bin', np.random.default_rng(9), codec, dim, 4096,
                             [(5, 0, 1)])
    signs = np.where(np.arange(dim) % 2, -1, 1)
    scales = np.ones(dim // 32, '<f2').tobytes()
    if codec == 'int8':
        values = np.array([[-128] * dim, [127] * dim, 127 * signs, -128 * (signs > 0),
                           127 * -signs])
        rows = [row.astype(np.int8).tobytes() + scales for row in values]
    else:
        values = np.array([[-8] * dim, [7] * dim, 7 * signs, -8 * (signs > 0), 7 * -signs])
        nibbles = (values + 8).reshape(5, -1, 2, 16)
        packed = (nibbles[:, :, 0] | nibbles[:, :, 1] << 4).astype(np.uint8)
        lines = b'\x80' * (dim // 32) + bytes(dim // 32) + np.array([2, 0], '<f2').tobytes()
        rows = [row.tobytes() + lines for row in packed]
    body = b''.join(rows).ljust(4092, b'\0')
    made.path.write_bytes(plain_group(0, 0, body))
    core = Setting().open(made, NeuronCore)
    for x in (np.ones(dim), -np.ones(dim), signs):
        x = np.repeat(x[None].astype(np.float32), tokens, axis=0)
        out = np.empty((tokens, 5), np.float32)
        core.rows_dot(0, x, out)
        assert np.allclose(out, rounded(x, codec) @ values.T, rtol=1e-6, atol=1e-3)


@each_kernels
def test_large_inputs_do_not_become_nan(tmp_path, chosen):
    rng = np.random.default_rng(3)
    made = write_neuron_file(tmp_path / 'neurons.bin', rng, 'fp16', 64, 1024, [(9, 0, 2)])
    core = Setting().open(made, NeuronCore)
    x = np.full((1, 64), 1e6, np.float32)
    h = np.empty((1, 9), np.float32)
    core.gate_up(0, x, h, 'silu')
    gate = x @ made.sections[0].weights[:, 0].T
    assert (gate < -1000).any()
    assert (gate > 1000).any()
    assert np.isfinite(h).all()
    assert not h[gate < -1000].any()


@each_kernels
@pytest.mark.parametrize('tokens', [1, 5])
def test_rows_are_added_in_order(tmp_path, chosen, tokens):
    """Order shows where float32 drops small terms: in file order only the late ones survive."""
    rng = np.random.default_rng(4)
    made = write_neuron_file(tmp_path / 'neurons.bin', rng, 'fp16', 40, 512, [(60, 0, 2)])
    with open(made.path, 'r+b') as file:
        for group in range(made.groups):
            bundles = range(3 * group, min(3 * group + 3, 60))
            # Rows of zeros, so that a bias is the activation; then a column of one sign.
            rows = [row for bundle in bundles
                    for row in (np.zeros(40), np.full(40, -1 if bundle == 51 else 1))]
            body = np.array(rows).astype('<f2').tobytes().ljust(508, b'\0')
            file.seek(512 * group)
            file.write(plain_group(0, group, body))
    core = Setting({0: 4}, ring=(2, 2), cache=3).open(made, NeuronCore)
    h = rng.random(60).astype(np.float32)
    h[7] = h[51] = 1e9
    wanted = np.float32(0)
    for bundle in range(60):
        wanted += -h[bundle] if bundle == 51 else h[bundle]
    out = np.zeros((tokens, 40), np.float32)
    core.bundled(0, np.ones((tokens, 40), np.float32), out, 'relu', h)
    assert (out == wanted).all()


@each_kernels
@pytest.mark.parametrize('codec', ['int8', 'int4'])
def test_a_token_does_not_depend_on_its_neighbours(tmp_path, chosen, codec):
    """With several tokens in a call, each one's result is the same in any company."""
    rng = np.random.default_rng(6)
    made = write_neuron_file(tmp_path / 'neurons.bin', rng, codec, 100, 1024,
                             [(40, 0, 2), (30, 0, 3)])
    pinned = {index: part.groups for index, part in enumerate(made.sections)}
    core = Setting(pinned).open(made, NeuronCore)
    x = rng.standard_normal((23, 100)).astype(np.float32)

    def computed(part: slice) -> tuple[np.ndarray, np.ndarray]:
        h, out = np.zeros((23, 40), np.float32)[part], np.zeros((23, 100), np.float32)[part]
        core.gate_up(0, x[part], h, 'silu')
        core.bundled(1, x[part], out, 'silu')
        return h, out

    def check(counts: tuple[int, ...], h: np.ndarray, out: np.ndarray) -> None:
        for tokens in counts:
            for first in (0, 3):
                part = slice(first, first + tokens)
                some_h, some_out = computed(part)
                assert np.array_equal(some_h, h[part])
                assert np.array_equal(some_out, out[part])

    check((13, 14, 17, 20), *computed(slice(23)))
    # Of up to 12 tokens dot products are those of one alone: guesses change nothing.
    alone = np.concatenate([computed(slice(token, token + 1))[0] for token in range(15)])
    out = np.concatenate([computed(slice(12))[1], computed(slice(3, 15))[1][9:]])
    check((2, 3, 5, 12), alone, out)


def test_a_missing_extension_is_a_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, 'flash_llm_ros._native', None)
    monkeypatch.delattr(flash_llm_ros, '_native')
    with pytest.raises(ImportError, match=r'the C\+\+ core .* cannot be loaded .*; build it with'):
        load_core_class()


@pytest.mark.parametrize('compiled', [None, FORMAT_VERSION - 1, FORMAT_VERSION + 1])
def test_an_extension_of_another_format_is_refused(monkeypatch, compiled):
    """As one is that was compiled before the int4 rows changed: it gave NaN without a word."""
    monkeypatch.delattr(_native, 'STORE_FORMAT')
    if compiled is not None:
        monkeypatch.setattr(_native, 'STORE_FORMAT', compiled, raising=False)
    with assert_error(ErrorCode.STORE_VERSION, 'build or install the package again'):
        load_core_class()


def test_the_best_kernels_are_chosen(tmp_path, monkeypatch):
    monkeypatch.delenv('FLASH_LLM_ROS_KERNELS', raising=False)
    made = write_neuron_file(tmp_path / 'neurons.bin', np.random.default_rng(0), 'int8', 32, 512,
                             [(5, 0, 1)])
    core = made.open(NeuronCore, 1)
    assert core.kernels == next(kernels for kernels in KERNELS if runs_here(kernels))
    monkeypatch.setenv('FLASH_LLM_ROS_KERNELS', 'mmx')
    with pytest.raises(ValueError, match=r'FLASH_LLM_ROS_KERNELS: mmx .*plain on this processor'):
        made.open(NeuronCore, 1)
