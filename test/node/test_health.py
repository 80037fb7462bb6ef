"""What /diagnostics judges: flash, memory, heat, QoS; with injected counters and sysfs folders."""

import math
from pathlib import Path

import pytest

from flash_llm_ros.node.health import Level, worst
from flash_llm_ros.node.health.flash import FlashHealth
from flash_llm_ros.node.health.heat import Heat
from flash_llm_ros.node.health.memory import memory_health, swapped_bytes
from flash_llm_ros.store.device_profile import DeviceProfile, Measurement
from flash_llm_ros.store.flash_device import FlashDevice

# 128 KiB at a time, 1 GB/s at best.
PROFILE = DeviceProfile(
    FlashDevice('mmcblk0p2', 'ext4', 10**9), 'io_uring', True, '2026-01-01T00:00:00+00:00', 10**9,
    tuple(Measurement(pattern, size, depth, rate / size)
          for pattern in ('random', 'sequential')
          for size, depth, rate in ((4096, 1, 2e7), (4096, 16, 1e8), (131072, 1, 5e8),
                                    (131072, 16, 1e9))))


def counters(read_bytes: float, reads: int, reading: float, waiting: float) -> dict[str, int]:
    """Counters of the core; seconds are turned into nanoseconds."""
    return {'flash_bytes': int(read_bytes), 'flash_reads': reads, 'read_ns': int(reading * 1e9),
            'wait_ns': int(waiting * 1e9)}


def judged(*looks: dict[str, int], profile: DeviceProfile | None = PROFILE):
    health = FlashHealth(profile, counters(0, 0, 0, 0))
    for look in looks:
        health.look(look)
    return health.health(4.0)


@pytest.mark.ros
def test_throughput_is_of_the_last_period_only() -> None:
    from flash_llm_ros.node.health.status import Throughput

    throughput = Throughput()
    throughput.look(1000, 10.0)
    assert throughput.bytes_per_second == 0.0       # there is no period yet
    throughput.look(3000, 10.5)
    assert throughput.bytes_per_second == 4000.0
    throughput.look(3000, 11.0)
    assert throughput.bytes_per_second == 0.0
    throughput.look(None, 11.5)                     # cleaned up
    throughput.look(500, 12.0)
    assert throughput.bytes_per_second == 0.0
    throughput.look(100, 12.5)                      # another engine, which counts anew
    assert throughput.bytes_per_second == 0.0


@pytest.mark.ros
def test_a_namesake_that_stays_is_an_error_and_logged_once_a_level() -> None:
    from types import SimpleNamespace

    from flash_llm_ros.node.health.namesakes import Namesakes

    there, logged, clock = [('llm', '/robot'), ('llm', '/')], [], [0.0]
    node = SimpleNamespace(
        get_fully_qualified_name=lambda: '/robot/llm', get_node_names_and_namespaces=lambda: there,
        get_logger=lambda: SimpleNamespace(warning=lambda text: logged.append(Level.WARN),
                                           error=lambda text: logged.append(Level.ERROR)))
    namesakes = Namesakes(node, lambda: clock[0])

    def level(seconds: float) -> Level:
        clock[0] = seconds
        return max((level for level, _ in namesakes.findings()), default=Level.OK)

    assert level(0) == Level.OK
    there.append(('llm', '/robot'))
    assert [level(at) for at in (100, 129, 131, 150)] == [Level.WARN] * 2 + [Level.ERROR] * 2
    assert logged == [Level.WARN, Level.ERROR]
    del there[-1]
    assert level(151) == Level.OK
    there.append(('llm', '/robot'))
    assert level(152) == Level.WARN and logged[2:] == [Level.WARN]


def test_a_slow_flash_is_told() -> None:
    reads = 1_000_000_000 // 131072
    fast = judged(counters(1e9, reads, 2.0, 1.5))
    assert fast.level == Level.OK and '2.0 times' in fast.text
    slow = judged(counters(1e9, reads, 9.0, 8.0))
    assert slow.level == Level.WARN and '9.0 times as long' in slow.text
    assert float(slow.values['throughput while waiting (B/s)']) == pytest.approx(1e9 / 9, rel=1e-3)
    # What was slow once is over when it is fast again.
    both = judged(counters(1e9, reads, 9.0, 8.0), counters(2e9, 2 * reads, 11.0, 10.0))
    assert both.level == Level.OK


def test_reads_that_nobody_waited_for_are_not_judged() -> None:
    reads = 1_000_000_000 // 131072
    assert judged(counters(1e9, reads, 9.0, 1.0)).level == Level.OK
    assert judged(counters(1e7, 80, 0.9, 0.9)).text == 'not pressed yet'
    # Together they make more than a second.
    assert judged(counters(1e7, 80, 0.9, 0.9), counters(2e7, 160, 1.8, 1.8)).level == Level.WARN


def test_without_a_profile_nothing_is_slow() -> None:
    health = judged(counters(1e6, 10, 9.0, 9.0), profile=None)
    assert health.level == Level.OK and 'probe' in health.values['profile']


@pytest.mark.parametrize(('grown', 'swapped', 'level', 'word'), [
    (100, 0, Level.OK, '90 of 100 B planned'), (110, 0, Level.OK, ''),
    (111, 0, Level.WARN, 'more than'), (121, 0, Level.ERROR, 'more than'),
    (50, 7_000_000, Level.WARN, '7.0 MB of the process were swapped out'),
    (121, 1, Level.ERROR, 'swapped'),
])
def test_memory_is_compared_with_the_promise(grown, swapped, level, word) -> None:
    health = memory_health(1000 + grown, 1000, 90, 100, 10, swapped)
    assert health.level == level and word in health.text
    assert health.values['grown by (B)'] == grown


def test_swap_is_read_from_the_kernel(tmp_path: Path) -> None:
    (tmp_path / 'status').write_text('Name:\tx\nVmSwap:\t     12 kB\n')
    assert swapped_bytes(tmp_path / 'status') == 12288
    assert swapped_bytes() >= 0


def test_the_worst_finding_comes_first() -> None:
    assert worst([], 'fine', {}).text == 'fine'
    health = worst([(Level.WARN, 'a.'), (Level.ERROR, 'b.'), (Level.WARN, 'c.')], 'fine', {})
    assert health.level == Level.ERROR and health.text == 'b. a. c.'


def put(root: Path, **files: str) -> None:
    """Write files of a sysfs; '__' in a name is a '/'."""
    for name, content in files.items():
        path = root / name.replace('__', '/')
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content + '\n')


def looked(root: Path) -> Heat:
    heat = Heat(root)
    heat.look()
    return heat


def test_nothing_is_known_without_sensors(tmp_path: Path) -> None:
    heat = looked(tmp_path)
    assert math.isnan(heat.temperature) and heat.signs == ()
    health = heat.health(80.0, 95.0)
    assert health.level == Level.OK and 'no temperature' in health.text


def test_the_hottest_zone_counts(tmp_path: Path) -> None:
    zone = 'class__thermal__thermal_zone'
    put(tmp_path, **{f'{zone}0__temp': '45123', f'{zone}0__type': 'cpu-thermal',
                     f'{zone}1__temp': '81250', f'{zone}1__type': 'gpu-thermal',
                     f'{zone}2__temp': '-274000', f'{zone}3__temp': '999000',
                     f'{zone}4__temp': 'off', f'{zone}5__type': 'no temp'})
    heat = looked(tmp_path)
    assert heat.temperature == 81.25
    for warning, error, level in ((82.0, 95.0, Level.OK), (81.0, 95.0, Level.WARN),
                                  (60.0, 81.0, Level.ERROR), (95.0, 81.0, Level.ERROR)):
        health = heat.health(warning, error)
        assert health.level == level
        assert level == Level.OK or 'gpu-thermal has 81.2 °C' in health.text
    put(tmp_path, **{f'{zone}1__temp': '50000'})
    heat.look()
    assert heat.temperature == 50.0


def test_throttling_by_counters_is_what_happens_now(tmp_path: Path) -> None:
    name = 'devices__system__cpu__cpu{}__thermal_throttle__core_throttle_count'
    put(tmp_path, **{name.format(0): '7', name.format(3): '0'})
    heat = looked(tmp_path)
    assert heat.signs == ()             # those of yesterday
    put(tmp_path, **{name.format(3): '2'})
    heat.look()
    assert heat.signs == ('cpu3 was throttled by its temperature',)
    assert heat.health(80.0, 95.0).level == Level.WARN
    heat.look()
    assert heat.signs == ()


@pytest.mark.parametrize('folder', ['soc/soc:firmware', 'soc@107c000000/soc:firmware'])
def test_throttling_by_the_firmware_of_a_raspberry_pi(tmp_path: Path, folder: str) -> None:
    path = f'devices/platform/{folder}/get_throttled'.replace('/', '__')
    put(tmp_path, **{path: '50000'})    # it happened, but not now
    assert looked(tmp_path).signs == ()
    put(tmp_path, **{path: '50005'})
    assert looked(tmp_path).signs == (
        'the firmware reports: under-voltage', 'the firmware reports: throttled')
    put(tmp_path, **{path: 'broken'})
    assert looked(tmp_path).signs == ()


def test_under_voltage_by_hwmon(tmp_path: Path) -> None:
    put(tmp_path, class__hwmon__hwmon1__name='rpi_volt', class__hwmon__hwmon1__in0_lcrit_alarm='1',
        class__hwmon__hwmon2__name='nvme', class__hwmon__hwmon2__in0_lcrit_alarm='1')
    assert looked(tmp_path).signs == ('the firmware reports: under-voltage',)


def test_throttling_by_cooling_devices(tmp_path: Path) -> None:
    device = 'class__thermal__cooling_device'
    for index, (name, state) in enumerate((('cpufreq-cpu0', '3'), ('pwm-fan', '2'),
                                           ('thermal-cpufreq-4', '0'), ('Processor', '1'))):
        put(tmp_path, **{f'{device}{index}__type': name, f'{device}{index}__cur_state': state,
                         f'{device}{index}__max_state': '4'})
    assert looked(tmp_path).signs == ('cpufreq-cpu0 is slowed down to cool (3 of 4)',
                                      'Processor is slowed down to cool (1 of 4)')
