"""The device profile: what it says of reads, and which profiles are believed."""

from dataclasses import replace
from pathlib import Path
import shutil
import subprocess

from flash_costs import DEPTHS, SIZES, linear_profile
from hypothesis import given, settings
from hypothesis import strategies as st
import numpy as np
import pytest
from refusals import assert_error
import yaml

from flash_llm_ros.store import flash_device
from flash_llm_ros.store.device_profile import PROFILE, DeviceProfile, Measurement, usable_profile
from flash_llm_ros.store.errors import ErrorCode
from flash_llm_ros.store.flash_device import FlashDevice

HERE = Path(__file__).parent
REQUEST, BYTE, LATENCY = 1e-5, 4e-10, 8e-5
LINEAR = linear_profile(HERE, REQUEST, BYTE, LATENCY)
READ_SIZES = st.integers(512, 4 << 20)


@pytest.mark.parametrize('depth', DEPTHS)
def test_a_linear_device_is_seen_as_it_is(depth):
    costs = LINEAR.costs(depth)
    assert costs.request_seconds == pytest.approx(REQUEST + LATENCY / depth, rel=1e-6)
    assert costs.byte_seconds == pytest.approx(BYTE, rel=1e-6)
    # A request of the useful length reaches 95 % of the rate without requests.
    rate = costs.largest_bytes / (costs.request_seconds
                                  + costs.largest_bytes * costs.byte_seconds)
    assert costs.largest_bytes == SIZES[-1] or rate * BYTE == pytest.approx(0.95, rel=1e-3)


@given(size=st.integers(512, 1 << 20), depth=st.sampled_from(DEPTHS))
def test_between_measured_sizes_times_are_on_the_line(size, depth):
    assert LINEAR.read_seconds(size, depth) == pytest.approx(
        REQUEST + LATENCY / depth + size * BYTE, rel=1e-9)


def test_outside_of_what_was_measured():
    assert LINEAR.read_seconds(100, 4) == LINEAR.read_seconds(512, 4)
    assert LINEAR.read_seconds(3 << 20, 4) == pytest.approx(3 * LINEAR.read_seconds(1 << 20, 4))
    assert LINEAR.read_seconds(4096, 1000) == LINEAR.read_seconds(4096, 64)


@settings(deadline=None)
@given(sizes=st.lists(READ_SIZES, min_size=1, max_size=50), depth=st.integers(1, 64))
def test_the_floor_lies_below_every_way_to_read(sizes, depth):
    floor = LINEAR.floor_seconds(sum(sizes), len(sizes))
    for pattern in ('random', 'sequential'):
        assert floor <= LINEAR.read_seconds(sizes, depth, pattern).sum() * (1 + 1e-9)


def test_the_floor_of_equal_reads_is_the_best_measurement():
    best = max(m.reads_per_second for m in LINEAR.measurements if m.read_bytes == 16384)
    assert LINEAR.floor_seconds(16384 * 1000, 1000) == pytest.approx(1000 / best)
    scattered = max(m.reads_per_second for m in LINEAR.measurements
                    if m.read_bytes == 16384 and m.pattern == 'random')
    assert scattered < best
    assert LINEAR.floor_seconds(16384 * 1000, 1000, 'random') == pytest.approx(1000 / scattered)
    assert LINEAR.floor_seconds(0, 0) == 0.0
    assert LINEAR.sequential_bytes_per_second == pytest.approx(
        2**20 / (REQUEST / 2 + LATENCY / 64 + 2**20 * BYTE))


def with_rates(rates):
    return replace(LINEAR, measurements=tuple(
        Measurement(*m[:3], rates.get(m[:3], m.reads_per_second)) for m in LINEAR.measurements))


def test_a_disturbed_measurement_does_not_make_short_reads_dear():
    disturbed = with_rates({('random', 4096, 16): 100.0})
    assert disturbed.read_seconds(4096, 16) == LINEAR.read_seconds(16384, 16)


def test_costs_stay_positive_whatever_was_measured():
    rng = np.random.default_rng(0)
    for _ in range(50):
        noisy = with_rates({m[:3]: float(10 ** rng.uniform(1, 6)) for m in LINEAR.measurements})
        for depth in (1, 5, 64):
            costs = noisy.costs(depth)
            assert costs.request_seconds > 0 and costs.byte_seconds > 0
            assert SIZES[0] <= costs.largest_bytes <= SIZES[-1]
    flat = with_rates({m[:3]: 1000.0 for m in LINEAR.measurements})
    assert flat.costs(16).byte_seconds > 0


def test_saved_and_loaded(tmp_path):
    path = tmp_path / PROFILE
    LINEAR.save(path)
    loaded = DeviceProfile.load(path)
    assert replace(loaded, measurements=LINEAR.measurements) == LINEAR
    for found, meant in zip(loaded.measurements, LINEAR.measurements, strict=True):
        assert found[:3] == meant[:3]
        assert found.reads_per_second == pytest.approx(meant.reads_per_second, abs=0.06)
    assert len(path.read_text().splitlines()) < 70      # one line a measurement, for people


def saved(tmp_path, **changes):
    path = tmp_path / PROFILE
    LINEAR.save(path)
    data = {**yaml.safe_load(path.read_text()), **changes}
    path.write_text(yaml.safe_dump({key: value for key, value in data.items()
                                    if value != 'left out'}))
    return path


ROW = ['random', 4096, 4, 1000.0]


@pytest.mark.parametrize(('changes', 'sentence'), [
    ({'profile_version': 2}, 'profile_version is 2; it must be 1; probe the store again'),
    ({'measured_at': 'yesterday'}, "measured_at is 'yesterday'; it must be a date"),
    ({'span_bytes': -1}, 'span_bytes is -1; it must be an integer of at least 1'),
    ({'measurements': []}, r'measurements is \(\); it must be at least one'),
    ({'measurements': [['zigzag', *ROW[1:]]]}, r"measurements\[0\].pattern is 'zigzag'"),
    ({'measurements': [['random', 0, 4, 1.0]]}, r'measurements\[0\].read_bytes is 0'),
    ({'measurements': [['random', 512, 4, float('inf')]]}, r'measurements\[0\].reads_per_sec'),
    ({'measurements': [ROW]}, 'measurements lack sequential reads of 4096 bytes, 4 in flight'),
])
def test_wrong_profiles_are_refused(tmp_path, changes, sentence):
    path = saved(tmp_path, **changes)
    with pytest.raises(ValueError, match=f'{PROFILE} is not a device profile: {sentence}'):
        DeviceProfile.load(path)


@pytest.mark.parametrize('content', [b'', b'[1, 2', b'\xff\xfe', b'just words', b'[' * 5000],
                         ids=lambda content: str(content)[:12])
def test_what_is_no_profile_at_all_is_refused(tmp_path, content):
    (tmp_path / PROFILE).write_bytes(content)
    with pytest.raises(ValueError, match='is not a device profile'):
        DeviceProfile.load(tmp_path / PROFILE)


def test_a_profile_that_cannot_be_read(tmp_path):
    with assert_error(ErrorCode.READ_FAILED):
        DeviceProfile.load(tmp_path / PROFILE)


def test_which_profile_is_used(tmp_path):
    profile, line = usable_profile(tmp_path)
    assert profile is None and 'flash_llm probe' in line

    LINEAR.save(tmp_path / PROFILE)
    here = linear_profile(tmp_path)
    here.save(tmp_path / PROFILE)
    profile, line = usable_profile(tmp_path)
    assert profile.device == here.device and '2026-01-02' in line

    foreign = replace(here, device=replace(here.device, bytes=here.device.bytes + 512))
    foreign.save(tmp_path / PROFILE)
    profile, line = usable_profile(tmp_path)
    assert profile is None and 'run `flash_llm probe` here' in line

    (tmp_path / PROFILE).write_text('nonsense')
    profile, line = usable_profile(tmp_path)
    assert profile is None and 'is not a device profile' in line


def test_the_device_is_what_findmnt_says(tmp_path):
    if shutil.which('findmnt') is None:
        pytest.skip('no findmnt')
    for path in (tmp_path, Path('/dev/shm'), Path('/proc')):
        found = subprocess.run(['findmnt', '-n', '-o', 'SOURCE,FSTYPE', '-T', str(path)], text=True,
                               capture_output=True, check=True, timeout=10).stdout.split()
        device = FlashDevice.of(path)
        assert [device.name, device.file_system] == [Path(found[0]).name, found[1]]


def test_nested_mounts_and_names_with_spaces(tmp_path, monkeypatch):
    inner = tmp_path / 'the store' / 'sub'
    inner.mkdir(parents=True)
    escaped = str(inner.parent).replace(' ', r'\040')
    mounts = tmp_path / 'mountinfo'
    mounts.write_text(
        '1 0 0:91 / / rw - overlay overlay rw\n'
        f'2 1 0:92 / {tmp_path} rw shared:7 - ext4 /dev/none1 rw\n'
        f'3 1 0:93 / {escaped} rw - xfs /dev/none2 rw\n'
        f'4 1 0:94 / {escaped} rw master:1 - btrfs /dev/my\\040disk rw\n'
        f'5 1 0:95 / {escaped}/su rw - vfat /dev/none4 rw\n')
    monkeypatch.setattr(flash_device, '_MOUNTS', mounts)
    assert FlashDevice.of(inner).file_system == 'btrfs'
    assert FlashDevice.of(inner).name == 'my disk'
    assert FlashDevice.of(tmp_path).name == 'none1'
    assert FlashDevice.of('/').name == 'overlay'
    assert FlashDevice.of(inner).bytes > 0


def test_a_path_that_does_not_exist(tmp_path):
    with pytest.raises(OSError, match='missing'):
        FlashDevice.of(tmp_path / 'missing')
