"""Good groups in the wrong place, or of another store: no text is made of them."""

from collections.abc import Callable
from pathlib import Path
import shutil

import numpy as np
import pytest
from refusals import assert_error
from tiny_checkpoint import converted, write_checkpoint

from flash_llm_ros.engine import Engine, EngineConfig, GenerationRequest
from flash_llm_ros.store.errors import ErrorCode, FlashLlmError
from flash_llm_ros.store.flash_store import FlashStore
from flash_llm_ros.store.neuron_reader import NeuronReader

BUDGETS = {'exact': 16_000_000, 'gated': 24_000_000}    # little is pinned
# What is exchanged: two neighbours, a bundle for a neighbour's, a section's groups moved on by one.
DAMAGE: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    'swapped': lambda numbers: numbers[[1, 0, *range(2, len(numbers))]],
    'copied': lambda numbers: numbers[[1, *range(1, len(numbers))]],
    'shifted': lambda numbers: np.roll(numbers, 1),
}


def answered(store: Path, mode: str, **options: object) -> str:
    engine = Engine.open(EngineConfig(store, BUDGETS[mode], mode, context_length=64, **options))
    try:
        return ''.join(engine.start(GenerationRequest('Hello', max_tokens=4)))
    finally:
        engine.close()


def refusal(store: Path, mode: str, **options: object) -> FlashLlmError:
    with assert_error(ErrorCode.CHECKSUM_MISMATCH) as error:
        answered(store, mode, **options)
    assert str(store / 'neurons.bin') in str(error.value)
    return error.value


@pytest.mark.parametrize('reader', ['threads', 'auto'])
@pytest.mark.parametrize('mode', ['exact', 'gated'])
@pytest.mark.parametrize('damage', DAMAGE)
def test_text_of_misplaced_groups(tmp_path: Path, stores: dict[str, Path], damage: str, mode: str,
                                  reader: str) -> None:
    """In every section, since each is used in a way of its own."""
    path = shutil.copytree(stores[mode], tmp_path / 'store')
    geometry = FlashStore.open(path).manifest.geometry
    right = np.fromfile(path / 'neurons.bin', np.uint8).reshape(geometry.groups, -1)
    for section in geometry.sections:
        if section.layer > 0:
            continue
        wrong = right.copy()
        numbers = np.arange(section.first_group, section.end_group)
        wrong[numbers] = right[DAMAGE[damage](numbers)]
        wrong.tofile(path / 'neurons.bin')
        if section.name == 'embedding':     # of which only the rows of the text are read
            with NeuronReader(FlashStore.open(path)) as reading, \
                    pytest.raises(FlashLlmError, match=f'group {section.first_group} '):
                reading.bundles('embedding')
        else:
            refusal(path, mode, reader=reader)
    right.tofile(path / 'neurons.bin')
    answered(path, mode, reader=reader)


def test_the_layers_are_exchanged(tmp_path: Path, int8_store: Path) -> None:
    path = shutil.copytree(int8_store, tmp_path / 'store')
    geometry = FlashStore.open(path).manifest.geometry
    groups = np.fromfile(path / 'neurons.bin', np.uint8).reshape(geometry.groups, -1)
    one, other = (geometry.section('down', layer) for layer in (0, 1))
    groups[one.first_group:one.end_group], groups[other.first_group:other.end_group] = (
        groups[other.first_group:other.end_group].copy(),
        groups[one.first_group:one.end_group].copy())
    groups.tofile(path / 'neurons.bin')
    assert refusal(path, 'exact')


def test_neurons_of_another_model_of_the_same_shape(tmp_path: Path, int8_store: Path) -> None:
    path = shutil.copytree(int8_store, tmp_path / 'store')
    other = converted(write_checkpoint(tmp_path / 'checkpoint', seed=1), tmp_path / 'other')
    assert other.neurons.stat().st_size == (path / 'neurons.bin').stat().st_size
    shutil.copy(other.neurons, path / 'neurons.bin')
    refusal(path, 'exact')
    with NeuronReader(FlashStore.open(path)) as reading, \
            pytest.raises(FlashLlmError, match=r'group 0 \(qkv of layer 0, byte 0\)'):
        reading.bundles('qkv', 0)


def test_neurons_from_before_they_were_put_in_order(tmp_path: Path, planted_store: Path) -> None:
    """What a lost write leaves on the medium is of the same conversion, and found as well."""
    path = shutil.copytree(planted_store, tmp_path / 'store')
    plain = converted(planted_store.parent / 'checkpoint', tmp_path / 'plain', calibrate=False)
    assert plain.manifest.geometry == FlashStore.open(path).manifest.geometry
    shutil.copy(plain.neurons, path / 'neurons.bin')
    refusal(path, 'gated')
