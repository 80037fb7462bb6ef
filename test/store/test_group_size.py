"""The group size for a device: the expectation against simulation, the choice against all others.
"""

from flash_costs import linear_profile
import numpy as np
import pytest

from flash_llm_ros.cli.main import main
from flash_llm_ros.convert.conversion import ConversionOptions, convert
from flash_llm_ros.engine.memory import device_probe
from flash_llm_ros.engine.numpy_read_plan import plan_reads
from flash_llm_ros.store.device_profile import PROFILE, DeviceProfile, ReadCosts
from flash_llm_ros.store.flash_store import FlashStore
from flash_llm_ros.store.geometry import CHECKSUM_BYTES, model_sections, plan_geometry
from flash_llm_ros.store.group_size import (
    GROUP_SECONDS,
    active_set_seconds,
    best_min_group_bytes,
    layer_seconds,
)

ENDLESS = 1 << 40
SSD = ReadCosts(1e-5, 4e-10, ENDLESS)
CARD = ReadCosts(5e-4, 1.1e-8, ENDLESS)     # an SD card: 2000 requests or 90 MB a second


def simulated(bundles, bundle_bytes, group_bytes, share, costs, rng):
    """The mean cost of the planner's requests for groups drawn bundle by bundle."""
    per_group = (group_bytes - CHECKSUM_BYTES) // bundle_bytes
    group_seconds = group_bytes * costs.byte_seconds
    total, rounds = 0.0, 300
    for _ in range(rounds):
        groups = np.unique(np.flatnonzero(rng.random(bundles) < share) // per_group).tolist()
        for begin, end in plan_reads(groups, costs.request_seconds / group_seconds, ENDLESS):
            read = groups[end - 1] - groups[begin] + 1
            total += costs.request_seconds + read * group_seconds + (end - begin) * GROUP_SECONDS
    return total / rounds


@pytest.mark.parametrize('costs', [SSD, CARD], ids=['ssd', 'card'])
@pytest.mark.parametrize('share', [0.003, 0.05, 0.5, 1.0])
@pytest.mark.parametrize('group_bytes', [4096, 16384, 65536])
def test_the_expectation_is_what_the_planner_reads(costs, share, group_bytes):
    shape = 4000, 700, group_bytes, share, costs
    assert active_set_seconds(*shape) == pytest.approx(
        simulated(*shape, np.random.default_rng(7)), rel=0.06)


def test_nothing_active_takes_no_time():
    assert active_set_seconds(4000, 700, 4096, 0.0, SSD) == 0.0


@pytest.mark.parametrize('layout', ['split', 'bundled'])
@pytest.mark.parametrize('costs', [SSD, CARD, ReadCosts(1e-5, 5e-11, ENDLESS)],
                         ids=['ssd', 'card', 'fast'])
@pytest.mark.parametrize('share', [0.01, 0.1, 0.5, 1.0])
def test_the_choice_is_the_smallest_that_is_good_enough(layout, costs, share):
    specs = model_sections(layout, 2, 4096, 1000, True)
    found = best_min_group_bytes(1024, 'int8', specs, 512, share, costs)
    seconds = {}
    for least in (4096, 8192, 16384, 32768, 65536, 131072):
        geometry = plan_geometry(1024, 'int8', specs, 512, least)
        assert geometry.waste < 0.03
        seconds[least] = layer_seconds(geometry, share, costs)
    for least, taken in seconds.items():
        assert (taken <= 1.1 * min(seconds.values())) == (least == found) or least > found


def test_which_devices_want_longer_groups():
    """Where time goes to groups and not to bytes, and all of them are needed."""
    specs = model_sections('split', 2, 4096, 1000, True)
    fast = ReadCosts(1e-5, 5e-11, ENDLESS)
    assert best_min_group_bytes(1024, 'int8', specs, 512, 1.0, fast) > 4096
    assert best_min_group_bytes(1024, 'int8', specs, 512, 1.0, CARD) == 4096
    assert best_min_group_bytes(1024, 'int8', specs, 512, 0.001, fast) == 4096


def quiet(what, done, total):
    pass


def geometry_of(checkpoint, target, **options):
    return convert(checkpoint, target, ConversionOptions(calibrate=False, **options),
                   quiet).manifest.geometry


def test_converting_for_a_profile(checkpoint_folder, tmp_path, capsys):
    plain = geometry_of(checkpoint_folder, tmp_path / 'plain.store')
    # A device of which groups are all that matters: as few as possible.
    fast = linear_profile(tmp_path, request=1e-6, byte=1e-13, latency=0.0)
    fast.save(tmp_path / 'fast.yaml')
    assert main(['convert', str(checkpoint_folder), str(tmp_path / 'fast.store'),
                 '--no-calibration', '--profile', str(tmp_path / 'fast.yaml')]) == 0
    store = FlashStore.open(tmp_path / 'fast.store')
    assert store.manifest.geometry.group_bytes >= 2 * plain.group_bytes
    assert str(store.manifest.geometry.group_bytes) in capsys.readouterr().out
    assert PROFILE not in store.manifest.files
    assert DeviceProfile.load(store.path / PROFILE).device == fast.device
    store.verify()
    # On a slow device the default is the best.
    slow = linear_profile(tmp_path, request=1e-3, byte=1e-8)
    assert geometry_of(checkpoint_folder, tmp_path / 'slow.store', profile=slow) == plain


def test_blocks_are_as_long_as_the_shortest_direct_read(checkpoint_folder, tmp_path):
    profile = linear_profile(tmp_path)
    longer = DeviceProfile(profile.device, 'threads', True, profile.measured_at, 1 << 30,
                           tuple(m for m in profile.measurements if m.read_bytes >= 4096))
    geometry = geometry_of(checkpoint_folder, tmp_path / 'a.store', profile=longer)
    assert geometry.block == 4096 and geometry.group_bytes % 4096 == 0


def test_probing_before_converting(checkpoint_folder, tmp_path, monkeypatch):
    pytest.importorskip('flash_llm_ros._native')
    monkeypatch.setattr(device_probe, '_TEMPORARY_SPAN', 2 << 20)
    monkeypatch.setattr('flash_llm_ros.convert.conversion._PROBE_SECONDS', 0.1)
    steps = set()
    target = tmp_path / 'deeper' / 'a.store'
    convert(checkpoint_folder, target, ConversionOptions(calibrate=False, probe=True),
            lambda what, done, total: steps.add(what))
    assert {'writing', 'probing', 'neurons'} <= steps
    assert DeviceProfile.load(target / PROFILE).span_bytes == 2 << 20
    assert [path.name for path in target.parent.iterdir()] == ['a.store']


def test_profiles_that_cannot_be_used(checkpoint_folder, tmp_path, capsys):
    with pytest.raises(ValueError, match='exclude each other'):
        ConversionOptions(probe=True, profile=linear_profile(tmp_path))
    (tmp_path / 'bad.yaml').write_text('speed: high')
    for name, sentence in (('bad.yaml', 'is not a device profile'), ('none.yaml', 'No such file')):
        assert main(['convert', str(checkpoint_folder), str(tmp_path / 'a.store'), '--profile',
                     str(tmp_path / name)]) == 1
        assert sentence in capsys.readouterr().err
    assert not (tmp_path / 'a.store').exists()
