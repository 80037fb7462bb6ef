"""Is the flash as fast as its profile says? Knows no ROS."""

from flash_llm_ros.node.health import Health, Level, worst
from flash_llm_ros.store.device_profile import DeviceProfile

JUDGED_AFTER = 1.0      # s of reading
LEAST_WAITING = 0.5     # share of it in which computing stood still, else nothing pressed the flash


class FlashHealth:
    """Compares reads, while computing waited for them, with the least time that they can take."""

    def __init__(self, profile: DeviceProfile | None, counters: dict[str, int]) -> None:
        """``counters`` as of ``Engine.flash_counters``."""
        self._profile = profile
        self._start = counters
        self.slowdown: float | None = None      # of the latest second of reading under pressure
        self._rate = 0.0

    def look(self, counters: dict[str, int]) -> None:
        """Take the counters of now, about once a second."""
        size, reads, reading, waiting = (
            counters[name] - self._start[name]
            for name in ('flash_bytes', 'flash_reads', 'read_ns', 'wait_ns'))
        if reading < JUDGED_AFTER * 1e9:
            return
        self._start = counters
        if waiting < LEAST_WAITING * reading or not reads:
            return
        self._rate = size / reading * 1e9
        if self._profile is not None:
            self.slowdown = reading / 1e9 / self._profile.floor_seconds(size, reads)

    def health(self, most_slowdown: float) -> Health:
        """Judge by the parameter `health.flash_slowdown_warning`."""
        found = []
        if self.slowdown is not None and self.slowdown > most_slowdown:
            found.append((Level.WARN, (
                f'The flash takes {self.slowdown:.1f} times as long as its profile says: it is '
                'worn, hot or used by others, or is to be probed again.')))
        values = {
            'profile': 'none; see `flash_llm probe`' if self._profile is None else
                       f'{self._profile.device}, measured at {self._profile.measured_at}',
            'throughput while waiting (B/s)': f'{self._rate:.0f}' if self._rate else '',
            'times as slow as the profile': '' if self.slowdown is None else
                                            f'{self.slowdown:.2f}',
        }
        if self._profile is None:
            fine = 'no device profile'
        elif self.slowdown is None:
            fine = 'not pressed yet'
        else:
            fine = f'{self.slowdown:.1f} times the least time of its profile'
        return worst(found, fine, values)
