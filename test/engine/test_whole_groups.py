"""`whole_groups`: sparse mode uses the neighbours of active neurons, and reads no more."""

import numpy as np
from planted_checkpoint import write_planted_checkpoint
import pytest

from flash_llm_ros.convert.conversion import ConversionOptions, convert
from flash_llm_ros.engine import Engine, EngineConfig, GenerationRequest
from flash_llm_ros.engine.neuron_trace import RecordingCore


@pytest.fixture(scope='module')
def relu_store(tmp_path_factory):
    folder = tmp_path_factory.mktemp('planted')
    checkpoint = write_planted_checkpoint(folder / 'checkpoint')
    convert(checkpoint, folder / 'planted.store', ConversionOptions(neurons='int4'),
            lambda what, done, total: None)
    return folder / 'planted.store'


def used(store, **options):
    """What the core was told to use of the first layer for the first generated token, and text."""
    engine = Engine.open(EngineConfig(store, 20_000_000, 'sparse', lock_memory=False, **options))
    try:
        core = engine.model.window.core = RecordingCore(engine.model.window.core)
        generation = engine.start(GenerationRequest('Where is the drone?', raw=True,
                                                    max_tokens=20))
        for _ in generation:
            pass
        section = next(found for found in engine.geometry.sections
                       if found.name in ('down', 'bundle') and found.layer == 0)
        first = next(np.unpackbits(bits, count=section.bundles) for predicted, bits
                     in zip(core.predicted, core.bits, strict=True) if not predicted)
        return first, section.bundles_per_group, generation.tokens
    finally:
        engine.close()


@pytest.mark.parametrize('store', ['int8_store', 'relu_store'])
def test_neighbours_in_a_group_are_used(store, request):
    path = request.getfixturevalue(store)
    options = {'sparsity': 0.9, 'down_reads': 'scattered'} if store == 'int8_store' else {}
    alone, per_group, _ = used(path, **options)
    whole, _, text = used(path, whole_groups=True, **options)
    assert per_group > 1
    expected = np.zeros_like(alone)
    for neuron in np.flatnonzero(alone):
        first = neuron // per_group * per_group
        expected[first:first + per_group] = 1
    np.testing.assert_array_equal(whole, expected)
    assert alone.sum() < whole.sum()
    assert text == used(path, whole_groups=True, core='numpy', **options)[2]


def test_text_does_not_depend_on_how_columns_are_read(int8_store):
    assert (used(int8_store, whole_groups=True, down_reads='stream')[2]
            == used(int8_store, whole_groups=True, down_reads='scattered')[2])
