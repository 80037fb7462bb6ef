"""Files of feed-forward weights alone: their rounding, and what they make of a checkpoint."""

import gzip
from pathlib import Path

from family_checkpoints import write_opt
from ffn_writer import write_ffn_file
import numpy as np
import pytest
from safetensors.numpy import load, save
from tiny_checkpoint import write_checkpoint

from flash_llm_ros.checkpoint.checkpoint import Checkpoint
from flash_llm_ros.checkpoint.errors import CheckpointError
from flash_llm_ros.checkpoint.ffn_file import FfnFile
from flash_llm_ros.checkpoint.open import open_checkpoint
from flash_llm_ros.cli.main import main
from flash_llm_ros.store.flash_store import FlashStore
from flash_llm_ros.store.neuron_reader import NeuronReader


def ffn_of(checkpoint: Checkpoint) -> dict[str, np.ndarray]:
    return {name: checkpoint.rows(name) for name in checkpoint.tensors
            if name.rpartition('.')[2] in ('gate', 'up', 'down')}


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / 'base', seed=1)


@pytest.fixture
def trained(tmp_path: Path) -> dict[str, np.ndarray]:
    return ffn_of(open_checkpoint(write_checkpoint(tmp_path / 'trained', seed=2)))


def test_rows_are_whole_numbers_of_steps(tmp_path: Path) -> None:
    numbers = np.array([[1, -127, 0], [5, 6, 7]], np.int8)
    (tmp_path / 'a.ffn').write_bytes(gzip.compress(save({
        'relu_threshold': np.array([0.25], np.float32), 'layers.0.gate': numbers,
        'layers.0.gate.step': np.array([0.5, 2], np.float16)})))
    file = FfnFile(tmp_path / 'a.ffn')
    assert file.relu_threshold == 0.25 and file.names == ('layers.0.gate',)
    np.testing.assert_array_equal(file.rows('layers.0.gate'), [[0.5, -63.5, 0], [10, 12, 14]])
    np.testing.assert_array_equal(file.rows('layers.0.gate', 1, 2), [[10, 12, 14]])


def test_the_rest_is_the_base_s(base: Path, trained: dict[str, np.ndarray], tmp_path: Path) -> None:
    write_ffn_file(tmp_path / 'relu.ffn', trained.items(), 0.0)
    own, both = open_checkpoint(base), open_checkpoint(base, tmp_path / 'relu.ffn')
    both.check_tensors()
    assert (both.spec.name, both.spec.feed_forward.activation) == ('relu', 'relu')
    assert own.spec.feed_forward.activation == 'silu'
    assert both.files == (*own.files, tmp_path / 'relu.ffn')
    for name in own.tensors:
        if name in trained:
            assert np.abs(both.rows(name) - trained[name]).mean() < 0.05 * trained[name].std()
            np.testing.assert_array_equal(both.rows(name, 3, 9), both.rows(name)[3:9])
        else:
            np.testing.assert_array_equal(both.rows(name), own.rows(name))


def test_scales_of_the_base_are_not_applied_twice(trained: dict[str, np.ndarray], tmp_path: Path
                                                  ) -> None:
    base = write_checkpoint(tmp_path / 'minicpm', model_type='minicpm', scale_depth=1.4,
                            scale_emb=12, dim_model_base=16)
    write_ffn_file(tmp_path / 'relu.ffn', trained.items(), 0.0)
    both = open_checkpoint(base, tmp_path / 'relu.ffn')
    name = 'layers.1.down'
    np.testing.assert_array_equal(both.rows(name), FfnFile(tmp_path / 'relu.ffn').rows(name))
    np.testing.assert_array_equal(both.rows('layers.1.o'), open_checkpoint(base).rows('layers.1.o'))


def test_converting(base: Path, trained: dict[str, np.ndarray], tmp_path: Path) -> None:
    write_ffn_file(tmp_path / 'relu.ffn', trained.items(), 0.125)
    assert main(['convert', str(base), str(tmp_path / 'store'), '--ffn', str(tmp_path / 'relu.ffn'),
                 '--neurons', 'fp16']) == 0
    store = FlashStore.open(tmp_path / 'store')
    assert store.manifest.layout == 'bundled' and store.manifest.calibration is not None
    assert store.manifest.model.feed_forward.relu_threshold == 0.125
    assert 'relu.ffn' in store.manifest.source
    rounded = FfnFile(tmp_path / 'relu.ffn')
    with NeuronReader(store) as reader:
        found = reader.bundles('bundle', 1)
    expected = np.stack([rounded.rows('layers.1.gate'), rounded.rows('layers.1.up'),
                         rounded.rows('layers.1.down').T], 1).astype(np.float16)
    found, expected = (neurons[np.lexsort(neurons[:, 0].T)]     # their order on flash is another
                       for neurons in (found.reshape(expected.shape), expected))
    np.testing.assert_array_equal(found, expected)


def test_a_block_without_gate_takes_no_weights_of_gated_ones(trained: dict[str, np.ndarray],
                                                             tmp_path: Path) -> None:
    write_ffn_file(tmp_path / 'relu.ffn', trained.items(), 0.0)
    with pytest.raises(CheckpointError, match='without gate'):
        open_checkpoint(write_opt(tmp_path / 'opt'), tmp_path / 'relu.ffn')


@pytest.mark.parametrize(('damage', 'message'), [
    (lambda data: b'not gzip', 'Not a gzipped file'),
    (lambda data: data[:2000], 'ended before'),
    (lambda data: gzip.compress(b'not safetensors'), 'header'),
    (lambda data: changed(data, 'relu_threshold', None), "lacks 'relu_threshold'"),
    (lambda data: changed(data, 'relu_threshold', np.array([np.nan], np.float32)),
     'relu_threshold is nan; it must be a number from 0 on'),
    (lambda data: changed(data, 'layers.0.up.step', None), "lacks 'layers.0.up.step'"),
    (lambda data: changed(data, 'layers.0.up', np.ones((2, 3), np.float32)), 'must be int8'),
    (lambda data: changed(data, 'layers.2.down', None), 'lacks layers.2.down, which'),
    (lambda data: changed(data, 'layers.2.down', np.ones((64, 8), np.int8)), r'shape \(64, 8\)'),
    (lambda data: changed(changed(data, 'layers.9.up', np.ones((8, 8), np.int8)),
                          'layers.9.up.step', np.ones(8, np.float16)), 'has layers.9.up, which'),
])
def test_what_is_wrong_with_a_file(base: Path, trained: dict[str, np.ndarray], tmp_path: Path,
                                   damage, message: str, capsys: pytest.CaptureFixture[str]
                                   ) -> None:
    path = tmp_path / 'relu.ffn'
    write_ffn_file(path, trained.items(), 0.0)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(base, path)
    assert main(['convert', str(base), str(tmp_path / 'store'), '--ffn', str(path)]) == 1
    assert 'relu.ffn' in capsys.readouterr().err and not (tmp_path / 'store').exists()


def changed(data: bytes, name: str, value: np.ndarray | None) -> bytes:
    tensors = load(gzip.decompress(data))
    if value is None:
        del tensors[name]
    else:
        tensors[name] = value
    return gzip.compress(save(tensors))
