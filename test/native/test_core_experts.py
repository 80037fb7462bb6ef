"""Experts in the core: sums of routed blocks against float64, whatever is in the cache."""

import struct

from core_cases import each_core
from core_oracle import (
    NeuronFile,
    SectionFile,
    plain_group,
    rounded,
    stored_row,
    times_up,
)
import numpy as np
import pytest

from flash_llm_ros._native import NeuronCore
from flash_llm_ros.store.errors import ChecksumError

LAYERS, EXPERTS, ACTIVE = 2, 6, 3


def write_experts(path, rng, codec, dim, neurons, group_bytes, biased=False) -> NeuronFile:
    """Layers of experts, each its gate and up rows and then its down rows.

    A section's weights are float64 [experts, bundles, rows, dim], its `biases` [experts, bundles,
    rows].
    """
    made = NeuronFile(path, dim, codec, group_bytes, identity=77)
    with open(path, 'wb') as file:
        for _ in range(LAYERS):
            parts = []
            for bundles, rows, length in ((neurons, 2, dim), (dim, 1, neurons)):
                size = rows * (len(stored_row(rng, codec, length)[0]) + 4 * biased)
                part = SectionFile(0, bundles, (group_bytes - 4) // size, rows, codec,
                                   np.empty((EXPERTS, bundles, rows, length)))
                part.biases = biased * rng.standard_normal(
                    (EXPERTS, bundles, rows)).astype(np.float32) * 5
                parts.append(part)
            stride = sum(part.groups for part in parts)
            for part, first in zip(parts, (0, parts[0].groups), strict=True):
                part.first_group = made.groups + first
                made.sections.append(part)
            for expert in range(EXPERTS):
                for part in parts:
                    bundles = []
                    for weights, biases in zip(part.weights[expert], part.biases[expert],
                                               strict=True):
                        pieces = [stored_row(rng, codec, weights.shape[1]) for _ in weights]
                        weights[:] = [values for _, values in pieces]
                        bundles.append(b''.join(
                            data + struct.pack('<f', bias) * biased
                            for (data, _), bias in zip(pieces, biases, strict=True)))
                    for start in range(0, len(bundles), part.bundles_per_group):
                        body = b''.join(bundles[start:start + part.bundles_per_group])
                        file.write(plain_group(made.identity, made.groups,
                                               body.ljust(group_bytes - 4, b'\0')))
                        made.groups += 1
            assert made.groups == parts[0].first_group + EXPERTS * stride
    return made


def opened(made, core_class, slots, biased=False, **options):
    core = core_class(str(made.path), made.group_bytes, made.groups, made.dim, slots,
                      identity=made.identity, lock_memory=False, **options)
    for gate_up, down in zip(made.sections[::2], made.sections[1::2], strict=True):
        stride = gate_up.groups + down.groups
        for part in (gate_up, down):
            core.add_section(part.first_group, part.bundles, part.bundles_per_group, part.rows,
                             part.codec, part.weights.shape[-1], EXPERTS, stride, biased)
    core.set_cache(slots)
    return core


def routing(rng, tokens):
    ids = np.stack([rng.choice(EXPERTS, ACTIVE, replace=False) for _ in range(tokens)])
    return ids.astype(np.int64), rng.random((tokens, ACTIVE), np.float32)


def wanted(gate_up, down, x, ids, weights, activation='silu'):
    """The sum and the size of what is added up, float64 [S, dim]."""
    total, size = np.zeros(x.shape), np.zeros(x.shape)
    exact = rounded(x, gate_up.codec)
    for token, (chosen, shares) in enumerate(zip(ids, weights, strict=True)):
        for expert, share in zip(chosen, shares, strict=True):
            gate, up = (gate_up.weights[expert] @ exact[token] + gate_up.biases[expert]).T
            h = times_up(activation, gate, up)
            h = rounded(h.astype(np.float32)[None], down.codec)[0]
            total[token] += share * (down.weights[expert][:, 0] @ h + down.biases[expert][:, 0])
            size[token] += share * (np.abs(down.weights[expert][:, 0]) @ np.abs(h))
    return total, size


@pytest.mark.parametrize(('activation', 'biased'), [('silu', False), ('clamped_swiglu', True)])
@pytest.mark.parametrize(('codec', 'dim', 'neurons', 'group_bytes'), [
    ('int8', 64, 40, 512), ('int4', 96, 70, 1024), ('fp16', 33, 20, 512), ('mxfp4', 70, 99, 512)])
@each_core
def test_sums_are_the_same_bytes_whatever_the_cache_holds(
        tmp_path, core_class, codec, dim, neurons, group_bytes, activation, biased):
    rng = np.random.default_rng(5)
    made = write_experts(tmp_path / 'neurons.bin', rng, codec, dim, neurons, group_bytes, biased)
    stride = made.sections[0].groups + made.sections[1].groups
    passes = [(layer, rng.standard_normal((tokens, dim)).astype(np.float32), *routing(rng, tokens))
              for tokens in (1, 1, 7, 1, 40) for layer in range(LAYERS)]
    found = []
    for slots, threads in ((stride, 1), (2 * stride + 1, 2), (made.groups, 3)):
        core = opened(made, core_class, slots, biased, threads=threads)
        sums = []
        for layer, x, ids, weights in passes:
            out = np.ones_like(x)
            core.experts(2 * layer, 2 * layer + 1, x, ids, weights, out, activation)
            sums.append(out)
        found.append(sums)
        stats = core.stats()
        uses = sum(len(np.unique(ids)) for _, _, ids, _ in passes) * stride
        assert stats['hits'] + stats['misses'] == uses
        if slots == made.groups:        # every group is read once, in requests of whole experts
            assert stats['crc_checked'] == stats['misses'] <= made.groups
            assert stats['flash_reads'] <= LAYERS * EXPERTS
        core.close()
    for sums in found[1:]:
        for first, other in zip(found[0], sums, strict=True):
            assert first.tobytes() == other.tobytes()
    for (layer, x, ids, weights), out in zip(passes, found[0], strict=True):
        total, size = wanted(made.sections[2 * layer], made.sections[2 * layer + 1], x, ids,
                             weights, activation)
        # Rounded activations may fall on the other side of half a step.
        step = {'int8': 1 / 32512, 'int4': 1 / 127, 'fp16': 0, 'mxfp4': 1 / 127}[codec]
        assert (np.abs(out - 1 - total) <= (2e-5 + step) * size + 1e-5).all()


@each_core
def test_a_flipped_bit_is_found_and_named(tmp_path, core_class):
    rng = np.random.default_rng(6)
    made = write_experts(tmp_path / 'neurons.bin', rng, 'int8', 64, 40, 512)
    gate_up, down = made.sections[2:]
    stride = gate_up.groups + down.groups
    damaged = down.first_group + 4 * stride + 1         # of the second layer's expert 4
    made.flip_bit(damaged, 100)
    x, out = np.ones((2, 64), np.float32), np.zeros((2, 64), np.float32)
    weights = np.ones((2, 2), np.float32)
    core = opened(made, core_class, made.groups)
    for tokens, ids in ((1, [[4, 2]]), (2, [[0, 1], [4, 5]])):
        with pytest.raises(ChecksumError, match=f'group {damaged} '):
            core.experts(2, 3, x[:tokens], np.array(ids), weights[:tokens], out[:tokens], 'silu')
    out[:] = 0
    core.experts(2, 3, x, np.array([[0, 1], [2, 5]]), weights, out, 'silu')
    total, size = wanted(gate_up, down, x, [[0, 1], [2, 5]], weights)
    assert (np.abs(out - total) <= 1e-4 * size + 1e-5).all()
    core.close()


def test_arguments(tmp_path):
    rng = np.random.default_rng(7)
    made = write_experts(tmp_path / 'neurons.bin', rng, 'int8', 64, 40, 512)
    stride = made.sections[0].groups + made.sections[1].groups
    x, ids, weights = np.ones((2, 64), np.float32), np.zeros((2, 3), np.int64), np.ones(
        (2, 3), np.float32)
    right = {'gate_up': 0, 'down': 1, 'x': x, 'ids': ids, 'weights': weights, 'out': x.copy(),
             'activation': 'silu'}
    core = opened(made, NeuronCore, made.groups)
    core.experts(**right)
    for changes, said in (
            ({'ids': ids + EXPERTS}, f'ids: {EXPERTS} is wrong, must be between 0 and'),
            ({'ids': ids.astype(np.int32)}, 'ids: int32'), ({'ids': ids[0]}, 'ids: int64'),
            ({'weights': weights[:, :2]}, 'weights: float32'), ({'down': 0}, 'section: 0'),
            ({'down': 3}, 'down: '), ({'activation': 'elu'}, "activation: 'elu'")):
        with pytest.raises(ValueError, match=said):
            core.experts(**right | changes)
    for copies, space, said in ((2, 1, 'stride: 1'), (1, 5, 'stride: 5'), (0, 5, 'copies: 0'),
                                (EXPERTS + 1, stride, 'first_group:')):
        with pytest.raises(ValueError, match=said):
            part = made.sections[2]
            core.add_section(part.first_group, part.bundles, part.bundles_per_group, 2, 'int8',
                             None, copies, space)
    core.close()
    small = opened(made, NeuronCore, stride - 1)
    with pytest.raises(ValueError, match=f'so many slots as an expert has groups, {stride}'):
        small.experts(**right)
    small.close()
