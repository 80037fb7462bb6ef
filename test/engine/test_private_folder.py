"""What is kept of conversations: nobody else reads it, nothing planted is used or overwritten."""

import os
from pathlib import Path
import stat
import tempfile

from generation_cases import TURNS, answer, opened, request, say
import pytest
from test_kept_prompt import ask, kept_file
from test_kept_prompt import opened as opened_with_lines

from flash_llm_ros.engine import EngineConfig
from flash_llm_ros.engine.conversations.private_folder import private_folder
from flash_llm_ros.store.errors import ErrorCode, FlashLlmError

NOBODY = 65534
as_root = pytest.mark.skipif(os.geteuid() != 0, reason='only root can give files away')


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / 'kept'


def keep(store: Path, folder: Path) -> tuple[list[int], list[str]]:
    """Answer twice, so that the system prompt is written; the tokens and what was logged."""
    engine, lines = opened_with_lines(store, folder)
    tokens = ask(engine).tokens
    answer(engine, 'something else')
    assert ask(engine).tokens == tokens
    engine.close()
    return tokens, lines


def test_modes(int8_store: Path, folder: Path) -> None:
    before = os.umask(0)
    try:
        keep(int8_store, folder)
    finally:
        os.umask(before)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE(kept_file(folder).stat().st_mode) == 0o600


@pytest.mark.parametrize('link', [os.symlink, os.link])
def test_a_planted_link_is_not_written_through(int8_store: Path, folder: Path, tmp_path: Path,
                                               link: object) -> None:
    """Under either name that is written, and under the one that is read."""
    tokens, _ = keep(int8_store, folder)
    name = kept_file(folder).name
    victim = tmp_path / 'victim'
    for planted in (name, f'{name}.part', name.replace('.kv', '.part')):
        for file in folder.iterdir():
            file.unlink()
        victim.write_text('years of work')
        link(victim, folder / planted)
        assert keep(int8_store, folder)[0] == tokens
        assert victim.read_text() == 'years of work'
        assert not (folder / name).is_symlink()
        assert stat.S_IMODE((folder / name).stat().st_mode) == 0o600


def test_a_good_file_behind_a_link_is_not_used(int8_store: Path, folder: Path, tmp_path: Path
                                               ) -> None:
    keep(int8_store, folder)
    kept = kept_file(folder)
    kept.rename(tmp_path / 'elsewhere')
    kept.symlink_to(tmp_path / 'elsewhere')
    engine, lines = opened_with_lines(int8_store, folder)
    assert ask(engine).stats.cached_tokens == 0
    assert lines[-1] == f'{kept} is not used: it is a symbolic link.'
    engine.close()


@pytest.mark.parametrize('mode', [0o644, 0o660, 0o602])
def test_a_file_that_others_may_use_is_not_used(int8_store: Path, folder: Path, mode: int) -> None:
    keep(int8_store, folder)
    kept_file(folder).chmod(mode)
    engine, lines = opened_with_lines(int8_store, folder)
    assert ask(engine).stats.cached_tokens == 0
    assert f'with mode {mode:04o}' in lines[-1]
    ask(engine)
    engine.close()
    assert stat.S_IMODE(kept_file(folder).stat().st_mode) == 0o600      # written anew


def assert_refused(store: Path, folder: Path, words: str) -> None:
    """Nothing is written to it, and nothing but time is lost; the log says why."""
    engine, lines = opened_with_lines(store, folder)
    assert any(f'session_folder {folder} will not be used: ' in line and words in line
               for line in lines)
    tokens = ask(engine).tokens
    answer(engine, 'something else')
    assert ask(engine).tokens == tokens
    assert words in lines[-1] and str(folder) in lines[-1]
    engine.close()
    engine = opened(store, session_folder=folder)
    say(engine, 'a', TURNS[0])
    answer(engine, 'something else')
    assert say(engine, 'a', TURNS[1]).stats.cached_tokens == 0
    pieces = iter(engine.start(request()))
    next(pieces)
    with pytest.raises(FlashLlmError, match=words) as error:
        engine.suspend()
    assert error.value.code is ErrorCode.READ_FAILED
    engine.close()
    assert not list(folder.iterdir())


@pytest.mark.parametrize('mode', [0o770, 0o707, 0o1777])
def test_a_folder_that_others_may_write_to(int8_store: Path, folder: Path, mode: int) -> None:
    folder.mkdir()
    folder.chmod(mode)
    assert_refused(int8_store, folder, f'its mode is {mode:04o}')


@as_root
def test_a_folder_of_somebody_else(int8_store: Path, folder: Path) -> None:
    folder.mkdir(mode=0o700)
    os.chown(folder, NOBODY, NOBODY)
    assert_refused(int8_store, folder, f'belongs to user {NOBODY}')


@as_root
def test_a_file_of_somebody_else(int8_store: Path, folder: Path) -> None:
    keep(int8_store, folder)
    os.chown(kept_file(folder), NOBODY, NOBODY)
    engine, lines = opened_with_lines(int8_store, folder)
    assert ask(engine).stats.cached_tokens == 0
    assert f'belongs to user {NOBODY}' in lines[-1]
    engine.close()


def test_the_folder_is_exchanged_after_it_was_checked(folder: Path, tmp_path: Path) -> None:
    with private_folder(folder) as checked:
        folder.rename(tmp_path / 'moved')
        folder.symlink_to(tmp_path)
        os.close(os.open('x', os.O_CREAT | os.O_WRONLY, dir_fd=checked))
    assert (tmp_path / 'moved/x').exists() and not (tmp_path / 'x').exists()


def test_without_a_home(int8_store: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A folder with the user's number in the name, which is checked as any other one."""
    monkeypatch.delenv('XDG_CACHE_HOME')
    monkeypatch.delenv('HOME', raising=False)
    monkeypatch.setattr(tempfile, 'tempdir', str(tmp_path))
    monkeypatch.setattr(Path, 'expanduser', no_home)
    assert EngineConfig(int8_store, 1).kv_folder == tmp_path / f'flash_llm-{os.geteuid()}'


def no_home(path: Path) -> Path:
    raise RuntimeError('Could not determine home directory.')
