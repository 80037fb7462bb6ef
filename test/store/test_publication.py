"""A store that is replaced is the old one or the new one, whenever the power goes."""

from collections.abc import Callable, Iterator
import ctypes
import errno
import fcntl
import os
from pathlib import Path
import shutil
import signal

import pytest
from refusals import assert_error
from tiny_checkpoint import converted, write_checkpoint

from flash_llm_ros.convert.conversion import convert
from flash_llm_ros.convert.options import ConversionOptions
from flash_llm_ros.store import publication
from flash_llm_ros.store.errors import ErrorCode
from flash_llm_ros.store.flash_store import FlashStore
from flash_llm_ros.store.publication import Publication, locked, restore

# What changes a file system or waits for it: a process may die before any of these calls.
STEPS = ((os, 'rename'), (os, 'fsync'), (os, 'rmdir'), (os, 'unlink'), (os, 'mkdir'),
         (publication, '_exchange'))


@pytest.fixture(params=['exchange', 'two renames'])
def publishing(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """With a file system that exchanges names, and with one that does not."""
    if request.param == 'two renames':
        monkeypatch.setattr(publication, '_exchange', lambda one, other: False)
    return request.param


@pytest.fixture
def stores(int8_store: Path, tmp_path: Path) -> Path:
    """A folder with nothing but an old store, `robot.store`, that has a file of its own."""
    folder = tmp_path / 'stores'
    shutil.copytree(int8_store, folder / 'robot.store')
    (folder / 'robot.store/old').touch()
    return folder


def replace_by(new: Path, target: Path) -> None:
    with Publication(target, replace=True) as place:
        shutil.copytree(new, place.path, dirs_exist_ok=True)
        (place.path / 'new').touch()
        place.publish()


def dying(call: Callable[..., object], left: Iterator[int]) -> Callable[..., object]:
    def counted(*arguments: object, **more: object) -> object:
        if next(left) == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return call(*arguments, **more)
    return counted


def killed_before(step: int, action: Callable[[], None]) -> bool:
    """Run in a process that kills itself before that step; False: it has fewer steps."""
    child = os.fork()
    if child == 0:
        left = iter(range(step, -1, -1))
        for module, name in STEPS:
            setattr(module, name, dying(getattr(module, name), left))
        try:
            action()
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status)


def test_killed_between_any_two_steps(publishing: str, stores: Path, int8_store: Path,
                                      tmp_path: Path) -> None:
    target, found = stores / 'robot.store', []
    before, step = tmp_path / 'before', 0
    shutil.copytree(stores, before)
    while killed_before(step, lambda: replace_by(int8_store, target)):
        FlashStore.open(target).verify()
        found.append('new' if (target / 'new').exists() else 'old')
        assert (target / 'old').exists() == (found[-1] == 'old')
        replace_by(int8_store, target)
        assert [path.name for path in stores.iterdir()] == ['robot.store']
        shutil.rmtree(stores)
        shutil.copytree(before, stores)
        step += 1
    assert found == sorted(found, reverse=True)     # once it is new, it stays
    assert found.count('old') > len(list(before.rglob('*'))) and found.count('new') > 5
    assert (target / 'new').exists() and [path.name for path in stores.iterdir()] == [target.name]


def test_what_a_killed_conversion_leaves_is_gone_after_the_next(stores: Path) -> None:
    target, options = stores / 'robot.store', ConversionOptions(replace=True)
    checkpoint = write_checkpoint(stores.parent / 'checkpoint')

    def dying_progress(step: str, done: int, total: int) -> None:
        if step == 'neurons' and done > total / 2:
            os.kill(os.getpid(), signal.SIGKILL)

    if (child := os.fork()) == 0:
        try:
            convert(checkpoint, target, options, dying_progress)
        finally:
            os._exit(0)
    assert os.WIFSIGNALED(os.waitpid(child, 0)[1])
    assert len(list(stores.iterdir())) == 2 and (target / 'old').exists()
    FlashStore.open(target).verify()
    convert(checkpoint, target, options, lambda *_: None).verify()
    assert [path.name for path in stores.iterdir()] == ['robot.store']


def test_a_store_without_its_name_is_brought_back(stores: Path) -> None:
    """By opening and by converting, also where the name is a link to the place."""
    target, link = stores / 'robot.store', stores.parent / 'link'
    link.symlink_to(target)
    for name in (target, link):
        target.rename(stores / '.robot.store.old-77')
        assert FlashStore.open(name).path == name
        assert [path.name for path in stores.iterdir()] == ['robot.store']
    target.rename(stores / '.robot.store.old-77')
    checkpoint = write_checkpoint(stores.parent / 'checkpoint')
    with pytest.raises(FileExistsError, match='--replace'):
        converted(checkpoint, target)
    assert (target / 'old').exists()


def test_what_another_process_works_on_is_left_alone(stores: Path, int8_store: Path) -> None:
    target, busy = stores / 'robot.store', stores / '.robot.store.partial-1'
    other = stores / '.robot.store2.partial-1'
    busy.mkdir()
    other.mkdir()
    lock = os.open(busy, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    replace_by(int8_store, target)
    assert busy.exists() and other.exists()
    target.rename(stores / '.robot.store.old-1')
    old = os.open(stores / '.robot.store.old-1', os.O_RDONLY)
    fcntl.flock(old, fcntl.LOCK_EX)         # in the middle of the two renames
    restore(target)
    with assert_error(ErrorCode.STORE_NOT_FOUND):
        FlashStore.open(target)
    os.close(old)
    os.close(lock)
    FlashStore.open(target)
    replace_by(int8_store, target)
    assert not busy.exists() and other.exists()


def test_the_old_store_stays_where_the_new_one_cannot_be_moved(
        stores: Path, int8_store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rename, target = Path.rename, stores / 'robot.store'

    def full(path: Path, to: Path) -> Path:
        if '.partial-' in path.name:
            raise OSError(errno.ENOSPC, 'the medium is full')
        return rename(path, to)

    monkeypatch.setattr(publication, '_exchange', lambda one, other: False)
    monkeypatch.setattr(Path, 'rename', full)
    with pytest.raises(OSError, match='full'):
        replace_by(int8_store, target)
    assert (target / 'old').exists() and [path.name for path in stores.iterdir()] == [target.name]


class Libc:
    """A C library whose renameat2 fails with this number."""

    def __init__(self, number: int) -> None:
        self.number = number

    def renameat2(self, *arguments: object) -> int:
        ctypes.set_errno(self.number)
        return -1


@pytest.mark.parametrize('number', [errno.ENOSYS, errno.EINVAL, None])
def test_systems_that_cannot_exchange_rename_twice(stores: Path, int8_store: Path,
                                                   monkeypatch: pytest.MonkeyPatch,
                                                   number: int | None) -> None:
    monkeypatch.setattr(ctypes, 'CDLL', lambda *_, **more: object() if number is None
                        else Libc(number))
    replace_by(int8_store, stores / 'robot.store')
    assert (stores / 'robot.store/new').exists()
    assert [path.name for path in stores.iterdir()] == ['robot.store']


def test_other_errors_of_an_exchange_are_told(stores: Path, int8_store: Path,
                                              monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, 'CDLL', lambda *_, **more: Libc(errno.EIO))
    with pytest.raises(OSError, match='Input/output error'):
        replace_by(int8_store, stores / 'robot.store')
    assert (stores / 'robot.store/old').exists()
    assert [path.name for path in stores.iterdir()] == ['robot.store']


def test_a_store_that_came_meanwhile_is_not_replaced(stores: Path, int8_store: Path,
                                                     publishing: str) -> None:
    """Two conversions to the same new name: the first one stays."""
    target = stores / 'new.store'
    with Publication(target, replace=False) as place:
        shutil.copytree(int8_store, place.path, dirs_exist_ok=True)
        (stores / 'robot.store').rename(target)
        with pytest.raises(FileExistsError, match=r'new\.store was written .*--replace'):
            place.publish()
    assert (target / 'old').exists() and [path.name for path in stores.iterdir()] == ['new.store']


def test_one_at_a_time_replaces_a_store(stores: Path, int8_store: Path, publishing: str) -> None:
    target = stores / 'robot.store'
    with Publication(target, replace=True) as place:
        shutil.copytree(int8_store, place.path, dirs_exist_ok=True)
        with pytest.raises(FileExistsError, match='another process'):
            replace_by(int8_store, target)
        assert sorted(stores.iterdir()) == sorted([place.path, target])
        place.publish()
        with pytest.raises(FileExistsError, match='another process'), locked(target):
            pass
    with locked(target), pytest.raises(FileExistsError, match='another process'):
        replace_by(int8_store, target)
    replace_by(int8_store, target)
    assert (target / 'new').exists()


@pytest.mark.parametrize('name', ['.', '../robot.store', '../link'])
def test_the_folder_one_is_in_is_replaced(stores: Path, monkeypatch: pytest.MonkeyPatch,
                                          name: str) -> None:
    target, checkpoint = stores / 'robot.store', write_checkpoint(stores.parent / 'checkpoint')
    (stores / 'link').symlink_to(target)
    monkeypatch.chdir(target)
    found = convert(checkpoint, name, ConversionOptions(replace=True), lambda *_: None)
    assert found.path == target and not (target / 'old').exists()
    found.verify()
