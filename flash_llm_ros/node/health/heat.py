"""Temperature and throttling, where the kernel shows them. Knows no ROS."""

import math
from pathlib import Path

from flash_llm_ros.node.health import Health, Level, worst

SYS = Path('/sys')
LEAST, MOST = -40.0, 200.0      # °C; sensors that are switched off tell other figures
# Of the Raspberry Pi's firmware; the bits 16 higher tell that it happened since the start.
FIRMWARE_BITS = {0: 'under-voltage', 1: 'frequency capped', 2: 'throttled',
                 3: 'soft temperature limit'}
FIRMWARE_FILES = ('devices/platform/soc*/soc*:firmware/get_throttled',
                  'devices/platform/soc*/*firmware/get_throttled')
COUNTERS = ('devices/system/cpu/cpu*/thermal_throttle/core_throttle_count',
            'devices/system/cpu/cpu*/thermal_throttle/package_throttle_count')


class Heat:
    """Looks when it is told to: some sensors take milliseconds to answer."""

    def __init__(self, sysfs: Path | None = None) -> None:
        self._sysfs = sysfs or SYS
        self._counts = self._throttle_counts()
        self.temperature = math.nan     # °C, of the hottest zone; NaN: none can be read
        self.zone = ''
        self.signs: tuple[str, ...] = ()    # that the processor is being slowed down, now

    def look(self) -> None:
        """Read everything; about once a second."""
        zones = list(self._zones())
        self.temperature, self.zone = max(zones, default=(math.nan, ''))
        before, self._counts = self._counts, self._throttle_counts()
        throttled = sorted({
            path.parents[1].name for path, count in self._counts.items()
            if count > before.get(path, count)})
        signs = [f'{name} was throttled by its temperature' for name in throttled]
        signs += [f'{name} is slowed down to cool ({state} of {most})'
                  for name, state, most in self._cooling()]
        signs += [f'the firmware reports: {word}' for word in self._firmware()]
        self.signs = tuple(signs)

    def health(self, warning: float, error: float) -> Health:
        """Judge by the parameters `health.temperature_warning` and `_error`, in °C."""
        found = [(Level.WARN, f'{sign[0].upper()}{sign[1:]}.') for sign in self.signs]
        if self.temperature >= min(warning, error):
            level = Level.ERROR if self.temperature >= error else Level.WARN
            found.append((level, f'{self.zone} has {self.temperature:.1f} °C; lower '
                                 '`compute.duty_cycle` or `compute.max_threads`, or cool it.'))
        values = {'temperature (°C)': '' if math.isnan(self.temperature) else
                                      f'{self.temperature:.1f}',
                  'zone': self.zone, 'throttling': '; '.join(self.signs)}
        fine = ('the kernel shows no temperature' if math.isnan(self.temperature) else
                f'{self.temperature:.1f} °C')
        return worst(found, fine, values)

    def _zones(self) -> list[tuple[float, str]]:
        found = []
        for zone in sorted(self._sysfs.glob('class/thermal/thermal_zone*')):
            millidegrees = _number(zone / 'temp')
            if millidegrees is not None and LEAST < millidegrees / 1000 < MOST:
                found.append((millidegrees / 1000, _text(zone / 'type') or zone.name))
        return found

    def _throttle_counts(self) -> dict[Path, int]:
        paths = [path for pattern in COUNTERS for path in self._sysfs.glob(pattern)]
        counts = ((path, _number(path)) for path in paths)
        return {path: count for path, count in counts if count is not None}

    def _cooling(self) -> list[tuple[str, int, int]]:
        found = []
        for device in sorted(self._sysfs.glob('class/thermal/cooling_device*')):
            name = _text(device / 'type')
            state, most = _number(device / 'cur_state'), _number(device / 'max_state')
            # Fans and memory have cooling states as well.
            if ('cpu' in name or name == 'Processor') and state and most:
                found.append((name, state, most))
        return found

    def _firmware(self) -> list[str]:
        for pattern in FIRMWARE_FILES:
            for path in self._sysfs.glob(pattern):
                try:
                    bits = int(_text(path), 16)
                except ValueError:
                    continue
                return [word for bit, word in FIRMWARE_BITS.items() if bits >> bit & 1]
        alarms = [device for device in self._sysfs.glob('class/hwmon/hwmon*')
                  if _text(device / 'name') == 'rpi_volt' and _number(device / 'in0_lcrit_alarm')]
        return [FIRMWARE_BITS[0]] if alarms else []


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except (OSError, UnicodeDecodeError):   # a sensor may refuse to be read
        return ''


def _number(path: Path) -> int | None:
    try:
        return int(_text(path))
    except ValueError:
        return None
