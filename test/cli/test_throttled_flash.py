"""The kernel slows a device down for who is in the cgroup, and for nobody else."""

import os
from pathlib import Path

import pytest

from flash_llm_ros.cli.throttled_flash import reading_slowly, throttled_flash
from flash_llm_ros.store.flash_classes import FLASH_CLASSES


def own_groups() -> str:
    return Path('/proc/self/cgroup').read_text()


def test_who_is_in_the_group_and_what_it_allows(tmp_path: Path) -> None:
    before, kind = own_groups(), FLASH_CLASSES['emmc']
    try:
        with throttled_flash(tmp_path, kind) as group:
            limits = ' '.join(file.read_text() for file in group.path.iterdir()
                              if file.name in ('io.max', 'blkio.throttle.read_bps_device',
                                               'blkio.throttle.read_iops_device'))
            assert str(kind.bytes_per_second) in limits
            assert str(kind.reads_per_second) in limits
            assert not group.members.read_text()
    except (OSError, RuntimeError) as error:
        pytest.skip(f'no device can be throttled here: {error}')
    with pytest.raises(ZeroDivisionError), reading_slowly(tmp_path, kind):
        within = next(line for line in own_groups().splitlines() if 'flash_llm_' in line)
        group = Path('/sys/fs/cgroup', 'blkio' if 'blkio' in within else '',
                     within.split(':')[2].lstrip('/'))
        assert str(os.getpid()) in (group / 'cgroup.procs').read_text().split()
        raise ZeroDivisionError
    assert own_groups() == before
    assert not group.exists()
