"""A disk that is full at each step of a conversion: the file is named, nothing is left behind."""

import errno
from pathlib import Path
import resource
import shutil
from types import SimpleNamespace

import pytest
from tiny_checkpoint import write_checkpoint

from flash_llm_ros.checkpoint.open import open_checkpoint
from flash_llm_ros.convert.calibration import CalibrationOptions, recalibrate
from flash_llm_ros.convert.conversion import convert
from flash_llm_ros.convert.forecast import Forecast
from flash_llm_ros.convert.options import ConversionOptions
from flash_llm_ros.store.flash_store import FlashStore
from flash_llm_ros.store.output_file import write_file


class FullDisk:
    """From a step of the progress on, no file can become longer than some bytes."""

    def __init__(self, step: str, count: int, most: int = 100) -> None:
        self._step, self._count, self._most = step, count, most
        self._limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def __call__(self, what: str, done: int, total: int) -> None:
        if what == self._step:
            self._count -= 1
            if self._count == 0:
                resource.setrlimit(resource.RLIMIT_FSIZE, (self._most, self._limits[1]))

    def __enter__(self) -> 'FullDisk':
        return self

    def __exit__(self, *exception: object) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, self._limits)


STEPS = [('neurons', 1, 'neurons.bin'), ('neurons', 11, 'resident.safetensors'),
         ('reading text', 1, 'predictors/recording/000.bundle.f16'),
         ('ordering neurons', 3, 'neurons.bin.reordered'),
         ('calibrating', 1, 'predictors.safetensors'), ('measuring', 2, 'manifest.yaml')]


@pytest.mark.parametrize(('step', 'count', 'name'), STEPS)
def test_converting(tmp_path: Path, step: str, count: int, name: str) -> None:
    write_checkpoint(tmp_path / 'checkpoint', hidden_act='relu')
    with FullDisk(step, count) as disk, pytest.raises(OSError) as error:
        convert(tmp_path / 'checkpoint', tmp_path / 'store', ConversionOptions(most_tokens=512),
                disk)
    assert error.value.errno == errno.EFBIG
    assert error.value.filename.endswith(f'/{name}'), error.value
    assert error.value.strerror in str(error.value) and name in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ['checkpoint']


def test_the_room_is_looked_at_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it asks for is enough, as the most that was on the disk at once says."""
    write_checkpoint(tmp_path / 'checkpoint', hidden_act='relu')
    checkpoint, most = open_checkpoint(tmp_path / 'checkpoint'), 0
    options = ConversionOptions(neurons='int4', most_tokens=512)
    asked = Forecast(checkpoint, options).disk_bytes

    def progress(*step: object) -> None:
        nonlocal most
        files = [path for path in tmp_path.rglob('*') if '.partial-' in str(path)]
        most = max(most, sum(path.stat().st_size for path in files if path.is_file()))

    for free in (asked - 1, asked):
        monkeypatch.setattr(shutil, 'disk_usage', lambda path, free=free: SimpleNamespace(
            free=free if path == tmp_path else None))
        if free < asked:
            with pytest.raises(OSError, match=r'MB free; this conversion takes up to \d+ MB'):
                convert(checkpoint.path, tmp_path / 'store', options, progress)
            assert most == 0 and [path.name for path in tmp_path.iterdir()] == ['checkpoint']
        else:
            convert(checkpoint.path, tmp_path / 'store', options, progress)
    assert 0 < most <= asked


def test_no_folder_is_made(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / 'checkpoint')
    with pytest.raises(FileNotFoundError, match=r'mkdir -p'):
        convert(tmp_path / 'checkpoint', tmp_path / 'new' / 'store', ConversionOptions(),
                lambda *step: None)
    assert [path.name for path in tmp_path.iterdir()] == ['checkpoint']


def test_calibrating(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / 'checkpoint', hidden_act='relu')
    store = convert(tmp_path / 'checkpoint', tmp_path / 'store', ConversionOptions(most_tokens=512),
                    lambda what, done, total: None)
    before = sorted(path.name for path in store.path.iterdir())
    for step, name in (('reading text', '000.bundle.f16'),
                       ('calibrating', 'predictors-2.safetensors'),
                       ('measuring', '.manifest.yaml.partial')):
        with FullDisk(step, 1) as disk, pytest.raises(OSError) as error:
            recalibrate(store.path, ['Some text. ' * 500], CalibrationOptions(most_tokens=512),
                        disk)
        assert error.value.filename.endswith(f'/{name}'), error.value
        assert sorted(path.name for path in store.path.iterdir()) == before
    FlashStore.open(store.path).verify()


def test_a_file_without_room(tmp_path: Path) -> None:
    with FullDisk('now', 1) as disk:
        disk('now', 0, 0)
        with pytest.raises(OSError, match=r'file') as error:
            write_file(tmp_path / 'profile.yaml', 'x' * 101)
        assert error.value.filename == str(tmp_path / 'profile.yaml')
        write_file(tmp_path / 'short', 'ü' * 50)
    assert (tmp_path / 'short').read_text() == 'ü' * 50
