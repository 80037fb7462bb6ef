"""`flash_llm recover`: a store gets corrections that are worth it, or stays as it was."""

import json
import os
from pathlib import Path
import shutil
import subprocess
import sys

from generation_cases import opened
import numpy as np
import pytest
from recovery_cases import (
    TEXT,
    content,
    quiet,
    recovery_file,
    write_both_modes,
    write_planted_tail,
)
from safetensors.numpy import load_file, save_file
from tiny_checkpoint import write_checkpoint
import torch
import yaml

from bench.quality.fidelity import engine_logits, token_losses
from flash_llm_ros.calibrate.recovery import Outcome, RecoveryOptions, recover
from flash_llm_ros.cli.main import main
from flash_llm_ros.convert.conversion import ConversionOptions, convert
from flash_llm_ros.store.errors import FlashLlmError
from flash_llm_ros.store.flash_store import FlashStore, file_sha256
from flash_llm_ros.store.manifest import Manifest

pytestmark = pytest.mark.timeout(120)
SIZE = {'rank': 8, 'most_tokens': 2048, 'measured_tokens': 256, 'length': 32,
        'learning_rate': 1e-2}
SMALL = {**SIZE, 'most_tokens': 512}        # 14 steps
STATES = 'flash_llm_ros.calibrate.self_distillation._SAVE_SECONDS'


@pytest.fixture(autouse=True, scope='module')
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope='module')
def both_modes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What mode sparse leaves out is nearly linear in the input; nothing is learned yet."""
    folder = tmp_path_factory.mktemp('both')
    source = convert(write_planted_tail(folder / 'checkpoint'), folder / 'source',
                     ConversionOptions(neurons='fp16', calibrate=False), quiet)
    return write_both_modes(source.path, folder / 'store')


@pytest.fixture
def store(both_modes: Path, tmp_path: Path) -> Path:
    return shutil.copytree(both_modes, tmp_path / 'robot.store')


@pytest.fixture(scope='module')
def recovered(both_modes: Path, tmp_path_factory: pytest.TempPathFactory
              ) -> tuple[Path, Path, list[Outcome]]:
    """The store, the work folder, and what came of it, on text that the model wrote."""
    folder = tmp_path_factory.mktemp('recovered')
    path = shutil.copytree(both_modes, folder / 'store')
    _, outcomes = recover(path, None, folder / 'work', RecoveryOptions((0.7,), (0.8,), **SIZE),
                          quiet)
    return path, folder / 'work', outcomes


class Interrupted(Exception):
    """What a test raises in the middle of training."""


def relative_perplexity(path: Path, pieces: list[list[int]], **options: object) -> float:
    """Of tokens one by one, as in an answer, beside exact mode."""
    losses = []
    for mode in ({'mode': 'exact'}, options):
        engine = opened(path, **mode)
        try:
            losses.append(np.concatenate([token_losses(engine_logits(engine, piece, dense=False),
                                                       piece) for piece in pieces]))
        finally:
            engine.close()
    return float(np.exp((losses[1] - losses[0]).mean()))


def test_what_was_learned_brings_modes_nearer_to_exact(recovered: tuple) -> None:
    path, _, (sparse, aggressive) = recovered
    assert [(one.mode, one.name, one.kept) for one in (sparse, aggressive)] == [
        ('sparse', '0.70', True), ('aggressive', '0.80', True)]
    manifest = yaml.safe_load((path / 'manifest.yaml').read_text())['recovery']
    for outcome in (sparse, aggressive):
        assert manifest[outcome.mode] == {outcome.name: vars(outcome.setting)}
        assert outcome.setting.after < outcome.setting.before
        assert 0 < outcome.setting.error < 0.1 and outcome.setting.tokens == 8 * 31
    assert sparse.setting.before > 1.15
    assert sparse.setting.after - 1 < 0.35 * (sparse.setting.before - 1)
    assert load_file(recovery_file(path))['sparse.0.70.2.inner'].shape == (8, 64)
    assert load_file(recovery_file(path))['aggressive.0.80.2.inner'].shape == (16, 64)
    FlashStore.open(path).verify()


def test_the_manifests_perplexity_is_the_engines(both_modes: Path, recovered: tuple) -> None:
    """On the pieces that nothing was learned from: every eighth."""
    path, work, (sparse, _) = recovered
    chats = (work / 'generated/chats.jsonl').read_text().splitlines()
    tokens = [token for chat in chats for token in json.loads(chat)][:2048]
    held_out = [tokens[start:start + 32] for start in range(7 * 32, 2048, 8 * 32)]
    mode = {'mode': 'sparse', 'sparsity': 0.7}
    assert relative_perplexity(path, held_out, **mode) == pytest.approx(
        sparse.setting.after, abs=0.02)
    assert relative_perplexity(both_modes, held_out, **mode) == pytest.approx(
        sparse.setting.before, abs=0.02)


def test_learning_again_begins_with_what_the_store_has(recovered: tuple, tmp_path: Path) -> None:
    """Not with what is left of the training before, in a work folder that is still there."""
    path, work, (first, other) = recovered
    path = shutil.copytree(path, tmp_path / 'store')
    shutil.copytree(work, tmp_path / 'work')
    before, seen = load_file(recovery_file(path)), []
    _, (again,) = recover(path, None, tmp_path / 'work', RecoveryOptions((0.7,), (), **SIZE),
                          lambda what, done, total: seen.append(what))
    assert seen.count('sparse 0.70') == 56
    assert again.setting.before == first.setting.after
    after = load_file(recovery_file(path))
    assert set(after) == set(before)
    for name, tensor in after.items():
        assert np.array_equal(before[name], tensor) == (name.startswith('aggressive')
                                                        or not again.kept)
    assert FlashStore.open(path).manifest.recovery.aggressive == {'0.80': other.setting}


@pytest.mark.parametrize('rate', [1e-30, 30.0], ids=['no better', 'worse'])
def test_what_is_not_better_is_not_kept(recovered: tuple, tmp_path: Path, rate: float) -> None:
    """Neither beside nor in the place of what the store has."""
    path = shutil.copytree(recovered[0], tmp_path / 'store')
    shutil.copytree(recovered[1] / 'generated', tmp_path / 'work/generated')
    before = content(path)
    _, outcomes = recover(path, None, tmp_path / 'work', RecoveryOptions(
        (0.6, 0.7), (0.7,), **{**SMALL, 'learning_rate': rate}), quiet)
    assert [one.kept for one in outcomes] == [False] * 3
    assert all(one.setting.after >= one.setting.before for one in outcomes)
    assert content(path) == before


@pytest.fixture(scope='module')
def uninterrupted(both_modes: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp('uninterrupted')
    path = shutil.copytree(both_modes, folder / 'store')
    _, outcomes = recover(path, [TEXT], folder / 'work', RecoveryOptions((0.7, 0.6), **SMALL),
                          quiet)
    assert [(one.mode, one.name) for one in outcomes] == [
        ('sparse', '0.70'), ('sparse', '0.60'), ('aggressive', '0.80'), ('aggressive', '0.70')]
    assert sum(one.kept for one in outcomes) >= 2
    return content(path)


@pytest.mark.parametrize(('what', 'saving', 'steps'), [
    ('sparse 0.70', 0.0, {'sparse 0.70': 9, 'sparse 0.60': 14, 'aggressive 0.80': 14}),
    ('sparse 0.60', 1e9, {'sparse 0.60': 14, 'aggressive 0.80': 14}),
    ('aggressive 0.80', 0.0, {'aggressive 0.80': 9})])
def test_an_interrupted_command_goes_on(both_modes: Path, store: Path, tmp_path: Path,
                                        uninterrupted: dict[str, bytes], what: str, saving: float,
                                        steps: dict[str, int],
                                        monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(STATES, saving)
    options = RecoveryOptions((0.7, 0.6), **SMALL)

    def interrupting(step: str, done: int, total: int) -> None:
        if (step, done) == (what, 5):
            raise Interrupted

    with pytest.raises(Interrupted):
        recover(store, [TEXT], tmp_path / 'work', options, interrupting)
    assert content(store) == content(both_modes)
    seen: list[str] = []
    recover(store, [TEXT], tmp_path / 'work', options, lambda step, *_: seen.append(step))
    assert content(store) == uninterrupted
    assert {step: seen.count(step) for step in seen if 'loading' not in step} == {
        **steps, 'aggressive 0.70': 14}


@pytest.mark.parametrize('other', ['learning_rate', 'rank', 'text', 'corrections'])
def test_what_was_made_from_something_else_is_not_used(store: Path, tmp_path: Path, other: str,
                                                       monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(STATES, 0.0)
    changes, texts = dict(SMALL), [TEXT]

    def interrupting(step: str, done: int, total: int) -> None:
        if (step, done) == ('aggressive 0.80', 5):
            raise Interrupted

    with pytest.raises(Interrupted):
        recover(store, texts, tmp_path / 'work', RecoveryOptions((), (0.8,), **changes),
                interrupting)
    if other == 'text':
        texts = [TEXT.upper()]
    elif other == 'corrections':        # the store was ordered again, with another rank
        give_narrower_corrections(store)
    else:
        changes[other] /= 2
        changes['rank'] = int(changes['rank'])
    seen: list[int] = []
    recover(store, texts, tmp_path / 'work', RecoveryOptions((), (0.8,), **changes),
            lambda step, done, _: step.startswith('aggressive') and seen.append(done))
    assert seen == list(range(1, 15))


def give_narrower_corrections(path: Path) -> None:
    file = path / 'corrections.safetensors'
    tensors = {name: tensor[:3] if name.endswith('inner') else tensor[:, :3]
               if name.endswith('outer') else tensor for name, tensor in load_file(file).items()}
    save_file({name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}, file)
    manifest = Manifest.load(path / 'manifest.yaml')
    manifest.files[file.name] = {'bytes': file.stat().st_size, 'sha256': file_sha256(file)}
    manifest.save(path / 'manifest.yaml')


@pytest.mark.parametrize(('changes', 'message'), [
    ({'rank': 0}, 'rank is 0; it must be at least 1'),
    ({'measured_tokens': 1}, 'measured_tokens is 1'), ({'length': 2}, 'length is 2'),
    ({'threads': 0}, 'threads is 0'),
    ({'most_tokens': 255, 'length': 32}, 'most_tokens is 255; it must be at least 256'),
    ({'sparsities': (0.5, 1.0)}, r'sparsities are \(0\.5, 1\.0\)'),
    ({'sparsities': (0.0,)}, 'sparsities are'), ({'sparsities': (0.705,)}, 'two decimals'),
    ({'learning_rate': 0.0}, r'learning_rate is 0\.0; it must be positive'),
    ({'learning_rate': float('nan')}, 'learning_rate is nan')])
def test_wrong_options(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RecoveryOptions(**changes)


@pytest.fixture(scope='module')
def bare(both_modes: Path) -> Path:
    """Neither calibrated nor ordered."""
    return both_modes.with_name('source')


def refused(path: Path, folder: Path, texts: list[str] | None = None,
            **options: object) -> str:
    before = content(path)
    with pytest.raises((ValueError, FlashLlmError)) as error:
        recover(path, texts or [TEXT], folder, RecoveryOptions(**{**SMALL, **options}), quiet)
    assert content(path) == before and not list(folder.rglob('*.pt'))
    return str(error.value)


def test_what_a_store_is_not_ready_for_is_refused(both_modes: Path, bare: Path, fp16_store: Path,
                                                  tmp_path: Path) -> None:
    work = tmp_path / 'work'
    said = refused(both_modes, work, ['Too short. ' * 20], length=32)
    assert 'the text has 220 tokens; it must have at least 256, 8 pieces' in said
    said = refused(both_modes, work, sparsities=(0.7, 0.95))
    assert 'sparsity is 0.95; this store is calibrated for at most 0.9' in said
    said = refused(both_modes, work, shares=(0.75,))
    assert 'neuron_share is 0.75; this store is prepared for 1.00, 0.80, 0.70' in said
    assert 'has no mode that leaves anything out' in refused(bare, work)
    assert 'is not calibrated' in refused(bare, work, sparsities=(0.7,))
    assert 'is not prepared for mode aggressive' in refused(fp16_store, work, shares=(0.8,))
    said = refused(both_modes, work, sparsities=(), shares=(1.0,))
    assert 'name a sparsity or a share' in said
    relu = convert(write_checkpoint(tmp_path / 'relu', hidden_act='relu'), tmp_path / 'store',
                   ConversionOptions(most_tokens=256), quiet)
    assert 'has the bundled layout' in refused(relu.path, work)
    with pytest.raises(FlashLlmError, match='There is no flash store'):
        recover(tmp_path / 'none', [TEXT], work, RecoveryOptions(), quiet)


@pytest.fixture
def text_file(tmp_path: Path) -> Path:
    (tmp_path / 'missions.txt').write_text(TEXT)
    return tmp_path / 'missions.txt'


def arguments_of(store: Path, text: Path, *more: str) -> list[str]:
    return ['recover', str(store), '--text', str(text), '--tokens', '512', '--length', '32',
            '--measured-tokens', '64', '--threads', '1', *more]


def test_the_command(store: Path, text_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments_of(store, text_file, '--learning-rate', '1e-2', '--rank', '4')) == 0
    said = capsys.readouterr()
    rows = [[part.strip() for part in line.split('│')[1:-1]] for line in said.out.splitlines()
            if line.startswith('│')]
    recovery = FlashStore.open(store).manifest.recovery
    assert [row[:2] for row in rows] == [['sparse', '0.70'], ['aggressive', '0.80'],
                                         ['aggressive', '0.70']]
    for mode, name, before, after, kept in rows:
        found = getattr(recovery, mode).get(name)
        assert kept == ('no: not better' if found is None else 'yes')
        if found:
            assert (before, after) == (f'{found.before:.3f}',
                                       f'{found.after:.3f} ± {found.error:.3f}')
    kept = sum(row[-1] == 'yes' for row in rows)
    assert rows[0][-1] == 'yes'
    assert f'{store}: {kept} of 3 settings have learned corrections, which are' in said.out
    assert 'sparsity: 0.70' in said.out and '; 62 held-out tokens' in said.out
    assert 'sparse 0.70: 14 done' in said.err
    assert sorted(os.listdir(store.parent)) == ['missions.txt', 'robot.store']
    assert main(['verify', str(store)]) == 0


def test_the_command_says_that_nothing_was_better(both_modes: Path, store: Path, text_file: Path,
                                                  capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments_of(store, text_file, '--learning-rate', '1e-30', '--sparsity', '0.6',
                             '0.7')) == 0
    said = capsys.readouterr().out
    assert said.count('no: not better') == 2 and 'aggressive' not in said
    assert f'{store}: 0 of 2 settings have learned corrections' in said
    assert content(store) == content(both_modes)


def test_the_command_refuses(both_modes: Path, store: Path, text_file: Path, tmp_path: Path,
                             capsys: pytest.CaptureFixture[str]) -> None:
    def refused(*more: str, path: Path = store) -> str:
        assert main(arguments_of(path, text_file, *more)) == 1
        return capsys.readouterr().err

    assert 'threads is 0' in refused('--threads', '0')
    assert 'rank is 0' in refused('--rank', '0')
    assert 'sparsity is 0.95' in refused('--sparsity', '0.95')
    assert 'neuron_share is 0.75' in refused('--share', '0.75')
    assert 'There is no flash store' in refused(path=tmp_path / 'none')
    text_file.write_text('Too short.')
    assert 'the text has 10 tokens' in refused()
    text_file.unlink()
    assert 'missions.txt' in refused()
    assert content(store) == content(both_modes)


def test_ctrl_c_keeps_what_is_done(both_modes: Path, store: Path, text_file: Path,
                                   monkeypatch: pytest.MonkeyPatch,
                                   capsys: pytest.CaptureFixture[str]) -> None:
    def stopped(*arguments: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr('flash_llm_ros.calibrate.recovery.publish_recovery', stopped)
        assert main(arguments_of(store, text_file, '--share', '0.8')) == 130
    assert content(store) == content(both_modes)
    work = store.with_name('.robot.store.recovery')
    assert [path.name for path in work.rglob('*.pt')] == ['aggressive-0.80.pt']
    capsys.readouterr()
    assert main(arguments_of(store, text_file, '--share', '0.8')) == 0
    assert 'aggressive 0.80: 14 done' not in capsys.readouterr().err      # no step is left
    assert not work.exists()


def test_without_torch_the_command_says_what_to_install(store: Path, text_file: Path) -> None:
    code = ('import sys; sys.modules["torch"] = None; from flash_llm_ros.cli.main import main; '
            'sys.exit(main(sys.argv[1:]))')
    done = subprocess.run([sys.executable, '-c', code, *arguments_of(store, text_file)],
                          capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (1, '')
    assert done.stderr == ('flash_llm: recover needs PyTorch: pip install '
                           '"flash_llm_ros[calibrate]"\n')
    assert not store.with_name('.robot.store.recovery').exists()


def test_a_folder_that_is_given_keeps_what_else_is_in_it(store: Path, text_file: Path) -> None:
    mine = text_file.parent / 'mine'
    mine.mkdir()
    (mine / 'notes.txt').write_text('keep me')
    assert main(arguments_of(store, text_file, '--sparsity', '0.7', '--work', str(mine))) == 0
    assert os.listdir(mine) == ['notes.txt']
