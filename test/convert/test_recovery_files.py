"""The file of learned corrections: what is kept, what goes, and what a failure leaves behind."""

from dataclasses import asdict
import os
from pathlib import Path
import re
import shutil

from generation_cases import opened
import numpy as np
import pytest
from recovery_cases import (
    SETTING,
    TEXT,
    content,
    quiet,
    random_corrections,
    recovery_file,
    write_both_modes,
)
from safetensors.numpy import load_file
import yaml

from flash_llm_ros.calibrate.ordered_store import OrderOptions, order_store
from flash_llm_ros.cli.main import main
from flash_llm_ros.convert.calibration import CalibrationOptions, recalibrate
from flash_llm_ros.report.page import Findings, page
from flash_llm_ros.store.errors import ErrorCode, FlashLlmError
from flash_llm_ros.store.flash_store import FlashStore
from flash_llm_ros.store.manifest import Manifest
from flash_llm_ros.store.recovery import RecoveredSetting
from flash_llm_ros.store.recovery_files import publish_recovery
from flash_llm_ros.store.tensor_file import TensorFileWriter

pytestmark = pytest.mark.timeout(120)
OTHER = RecoveredSetting(1.5, 1.0625, 0.02, 32)
ORDER = OrderOptions(shares=(1.0, 0.7), head_rank=64, head_rows=32, most_tokens=256,
                     measured_tokens=32)


class Interrupted(BaseException):
    """What is injected; no expected failure, as a kill is none."""


@pytest.fixture(scope='module')
def both_modes(fp16_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_both_modes(fp16_store, tmp_path_factory.mktemp('both') / 'store')


@pytest.fixture
def store(both_modes: Path, tmp_path: Path) -> Path:
    """A copy of the test's own."""
    return shutil.copytree(both_modes, tmp_path / 'robot.store')


def found(seed: int, rank: int = 5, setting: RecoveredSetting = SETTING) -> tuple:
    return setting, random_corrections(seed, rank)


def published(path: Path, sparse: dict, aggressive: dict) -> dict:
    """The manifest's section, read without our code."""
    publish_recovery(FlashStore.open(path), sparse, aggressive)
    return yaml.safe_load((path / 'manifest.yaml').read_text())['recovery']


def assert_holds(path: Path, expected: dict[str, int]) -> None:
    """Just these settings, each with the corrections of its seed and all that is around them."""
    tensors, names = load_file(recovery_file(path)), set()
    for prefix, seed in expected.items():
        for layer, correction in enumerate(random_corrections(seed)):
            for part, array in zip(('inner', 'outer', 'mean'), correction, strict=True):
                names.add(name := f'{prefix}.{layer}.{part}')
                assert tensors[name].dtype == np.float32
                np.testing.assert_array_equal(tensors[name], array, err_msg=name)
    assert set(tensors) == names
    assert [file.name for file in path.glob('recovery*')] == [recovery_file(path).name]
    listed = yaml.safe_load((path / 'manifest.yaml').read_text())['files']
    assert {name for name in listed if 'recovery' in name} == {recovery_file(path).name}
    FlashStore.open(path).verify()


def test_settings_are_added_and_the_file_before_goes(store: Path) -> None:
    assert FlashStore.open(store).manifest.recovery is None
    first = published(store, {'0.70': found(1)}, {'0.80': found(2)})
    assert first == {'file': 'recovery-1.safetensors', 'sparse': {'0.70': asdict(SETTING)},
                     'aggressive': {'0.80': asdict(SETTING)}}
    assert_holds(store, {'sparse.0.70': 1, 'aggressive.0.80': 2})
    second = published(store, {'0.60': found(3, setting=OTHER)}, {'0.80': found(4, setting=OTHER)})
    assert second == {'file': 'recovery-2.safetensors',
                      'sparse': {'0.70': asdict(SETTING), '0.60': asdict(OTHER)},
                      'aggressive': {'0.80': asdict(OTHER)}}
    assert_holds(store, {'sparse.0.70': 1, 'sparse.0.60': 3, 'aggressive.0.80': 4})
    third = published(store, {}, {'0.70': found(5)})
    assert third['file'] == 'recovery-1.safetensors'        # the name is free again
    assert_holds(store, {'sparse.0.70': 1, 'sparse.0.60': 3, 'aggressive.0.80': 4,
                         'aggressive.0.70': 5})
    before = content(store)
    published(store, {}, {})                                # nothing new
    assert content(store) == before


def test_all_else_stays(both_modes: Path, store: Path) -> None:
    published(store, {'0.70': found(1)}, {})
    before, after = content(both_modes), content(store)
    name = recovery_file(store).name
    assert {key for key in after if after[key] != before.get(key)} == {name, 'manifest.yaml'}
    assert set(after) - {name} == set(before)
    old, new = (yaml.safe_load((path / 'manifest.yaml').read_text())
                for path in (both_modes, store))
    new.pop('recovery')
    new['files'].pop(name)
    assert new.pop('sha256') != old.pop('sha256')
    assert new == old


def test_the_manifest_comes_back_as_it_was_saved(both_modes: Path, store: Path,
                                                 tmp_path: Path) -> None:
    published(store, {'0.70': found(1, setting=OTHER)}, {'0.80': found(2)})
    manifest = FlashStore.open(store).manifest
    assert manifest.recovery.sparse == {'0.70': OTHER}
    assert manifest.recovery.aggressive == {'0.80': SETTING}
    manifest.save(tmp_path / 'again.yaml')
    assert type(manifest).load(tmp_path / 'again.yaml') == manifest
    assert (tmp_path / 'again.yaml').read_bytes() == (store / 'manifest.yaml').read_bytes()
    assert 'recovery' not in yaml.safe_load((both_modes / 'manifest.yaml').read_text())


def test_another_calibration_drops_those_of_mode_sparse(store: Path, tmp_path: Path) -> None:
    published(store, {'0.70': found(1)}, {'0.80': found(2)})
    options = CalibrationOptions(most_tokens=256, measured_tokens=0)
    recalibrate(store, [TEXT], tmp_path / 'work', options, quiet)
    recovery = yaml.safe_load((store / 'manifest.yaml').read_text())['recovery']
    assert (recovery['sparse'], recovery['aggressive']) == ({}, {'0.80': asdict(SETTING)})
    assert FlashStore.open(store).sparse_corrections(0.7) is None
    FlashStore.open(store).verify()
    published(store, {'0.60': found(3)}, {})
    assert_holds(store, {'sparse.0.60': 3, 'aggressive.0.80': 2})   # the dropped one is gone
    for mode in ({'mode': 'aggressive', 'neuron_share': 0.8},
                 {'mode': 'sparse', 'sparsity': 0.7}, {'mode': 'sparse', 'sparsity': 0.6}):
        opened(store, **mode).close()


def test_another_calibration_removes_a_file_of_mode_sparse_only(both_modes: Path, store: Path,
                                                                tmp_path: Path) -> None:
    published(store, {'0.70': found(1)}, {})
    options = CalibrationOptions(most_tokens=256, measured_tokens=0)
    recalibrate(store, [TEXT], tmp_path / 'work', options, quiet)
    manifest = yaml.safe_load((store / 'manifest.yaml').read_text())
    assert 'recovery' not in manifest
    assert not [name for name in (*manifest['files'], *os.listdir(store)) if 'recovery' in name]
    plain = shutil.copytree(both_modes, tmp_path / 'plain')
    recalibrate(plain, [TEXT], tmp_path / 'work', options, quiet)
    assert content(plain) == content(store)         # as if nothing had ever been learned


def test_an_ordered_store_begins_without(store: Path, tmp_path: Path) -> None:
    published(store, {'0.70': found(1)}, {'0.80': found(2)})
    ordered = order_store(store, tmp_path / 'ordered', [TEXT], ORDER, quiet)
    ordered.verify()
    assert ordered.manifest.recovery is None and ordered.manifest.calibration is None
    assert not [name for name in content(ordered.path) if 'recovery' in name]
    assert_holds(store, {'sparse.0.70': 1, 'aggressive.0.80': 2})


@pytest.mark.parametrize('before', [False, True], ids=['first', 'again'])
@pytest.mark.parametrize('failing', ['write', 'close', 'hash', 'save', 'rename'])
def test_a_failure_leaves_the_store_as_it_was(store: Path, monkeypatch: pytest.MonkeyPatch,
                                              failing: str, before: bool) -> None:
    if before:
        published(store, {'0.70': found(1)}, {'0.80': found(2)})
    files = content(store)
    calls = []

    def fails(*arguments: object, **more: object) -> None:
        calls.append(failing)
        raise OSError(28, 'No space left on device')

    def writes_some(writer: TensorFileWriter, name: str, array: np.ndarray) -> None:
        if name.endswith('.1.mean'):
            fails()
        write(writer, name, array)

    def saves_some(manifest: Manifest, path: Path) -> None:
        path.write_text('format_version: 3')
        fails()

    opened_store, write = FlashStore.open(store), TensorFileWriter.write
    with monkeypatch.context() as patch:
        patch.setattr(*{
            'write': (TensorFileWriter, 'write', writes_some),
            'close': (TensorFileWriter, 'close', fails),
            'hash': ('flash_llm_ros.store.publication.file_sha256', fails),
            'save': (Manifest, 'save', saves_some),
            'rename': (os, 'replace', fails)}[failing])
        with pytest.raises(OSError, match='No space left'):
            publish_recovery(opened_store, {'0.60': found(3)}, {'0.80': found(4)})
    assert calls and content(store) == files
    published(store, {'0.60': found(3)}, {'0.80': found(4)})
    assert_holds(store, {**({'sparse.0.70': 1} if before else {}), 'sparse.0.60': 3,
                         'aggressive.0.80': 4})


@pytest.mark.parametrize('at', ['publication.sync', 'recovery_files.remove_unlisted_recovery'])
def test_a_failure_after_the_manifest_leaves_the_new_store(
        store: Path, monkeypatch: pytest.MonkeyPatch, at: str) -> None:
    """Killed before the file that was replaced is removed; the next call does that."""
    published(store, {'0.70': found(1)}, {})
    replace = os.replace

    def killed(*arguments: object) -> None:
        raise Interrupted

    for seed in (2, 3):
        with monkeypatch.context() as patch:
            def replaced(*names: str, patch: pytest.MonkeyPatch = patch) -> None:
                replace(*names)
                patch.setattr(f'flash_llm_ros.store.{at}', killed)

            patch.setattr(os, 'replace', replaced)
            with pytest.raises(Interrupted):
                publish_recovery(FlashStore.open(store), {'0.70': found(seed)}, {})
        FlashStore.open(store).verify()
        assert len(list(store.glob('recovery-*'))) == 2     # not one more each time
    publish_recovery(FlashStore.open(store), {}, {'0.80': found(4)})
    assert_holds(store, {'sparse.0.70': 3, 'aggressive.0.80': 4})


@pytest.mark.parametrize('again', ['recover', 'calibrate'])
def test_a_file_that_nobody_lists_is_removed(store: Path, tmp_path: Path, again: str) -> None:
    (store / 'recovery-1.safetensors').write_bytes(b'cut off')
    FlashStore.open(store).verify()
    if again == 'recover':
        published(store, {'0.70': found(1)}, {})
        assert_holds(store, {'sparse.0.70': 1})
    else:
        recalibrate(store, [TEXT], tmp_path / 'work', CalibrationOptions(
            most_tokens=256, measured_tokens=0), quiet)
        assert not list(store.glob('recovery*'))


def test_a_changed_file_is_found(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    published(store, {'0.70': found(1)}, {})
    assert main(['verify', str(store)]) == 0
    with recovery_file(store).open('r+b') as file:
        file.seek(-5, os.SEEK_END)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 4]))
    capsys.readouterr()
    assert main(['verify', str(store)]) == 1
    assert 'recovery-1.safetensors was changed' in capsys.readouterr().err
    for mode in ({'mode': 'sparse', 'sparsity': 0.7}, {'mode': 'exact'}):
        with pytest.raises(FlashLlmError, match=r'recovery-1\.safetensors was changed') as refused:
            opened(store, **mode)
        assert refused.value.code is ErrorCode.STORE_CORRUPT
    os.truncate(recovery_file(store), 100)
    with pytest.raises(FlashLlmError, match='has 100 bytes'):
        FlashStore.open(store)
    recovery_file(store).unlink()
    with pytest.raises(FlashLlmError, match='is missing'):
        FlashStore.open(store)


def test_a_file_that_the_manifest_does_not_list(store: Path) -> None:
    published(store, {'0.70': found(1)}, {})
    manifest = FlashStore.open(store).manifest
    del manifest.files['recovery-1.safetensors']
    manifest.save(store / 'manifest.yaml')
    with pytest.raises(FlashLlmError, match='does not list recovery-1') as refused:
        FlashStore.open(store)
    assert refused.value.code is ErrorCode.STORE_CORRUPT


def test_inspect_names_them(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(['inspect', str(store)]) == 0
    assert 'none learned' in capsys.readouterr().out
    published(store, {'0.70': found(1)}, {'0.80': found(2, setting=OTHER)})
    assert main(['inspect', str(store)]) == 0
    said = capsys.readouterr().out
    assert 'sparse 0.70 (perplexity 1.125 instead of 1.250 times' in said
    assert 'aggressive 0.80 (perplexity 1.062 instead of 1.500 times' in said
    assert main(['inspect', str(store), '--json']) == 0
    assert yaml.safe_load(capsys.readouterr().out)['recovery']['sparse'] == {
        '0.70': asdict(SETTING)}


def test_the_report_has_their_prices(both_modes: Path, store: Path) -> None:
    published(store, {'0.70': found(1)}, {'0.80': found(2, setting=OTHER)})
    without, written = (page(FlashStore.open(path), Findings([])) for path in (both_modes, store))
    for cells in (('sparse 0.70', '1.250', '1.125 ± 0.010'),
                  ('aggressive 0.80', '1.500', '1.062 ± 0.020')):
        row = re.compile(''.join(f'<t[dh][^>]*>{re.escape(cell)}</t[dh]>\\s*' for cell in cells))
        assert row.search(written) and not row.search(without)
    assert 'flash_llm recover STORE' in without and 'flash_llm recover' not in written
