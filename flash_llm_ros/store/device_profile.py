"""profile.yaml: how fast a flash device delivers, and what reads therefore cost."""

from dataclasses import asdict, dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from flash_llm_ros.checked_fields import (
    FieldError,
    check,
    check_integers,
    parsed_yaml,
    structured,
    yaml_file,
    yaml_text,
)
from flash_llm_ros.store.errors import ReadFailedError
from flash_llm_ros.store.flash_device import FlashDevice
from flash_llm_ros.store.output_file import write_file

PROFILE = 'profile.yaml'    # beside the store's manifest, not listed in it: it is the machine's
PROFILE_VERSION = 1
STREAM_REQUEST = 128 * 1024     # bytes of a request of the core's stream ring
PATTERNS = ('random', 'sequential')
_USEFUL = 0.95       # share of the rate of endless reads that a request should reach
_LEAST_SECONDS = 1e-12
_MOST = 2**40


class Measurement(NamedTuple):
    """Reads of one size with so many in flight; `pattern` is random or sequential."""

    pattern: str
    read_bytes: int
    in_flight: int
    reads_per_second: float

    @property
    def bytes_per_second(self) -> float:
        return self.read_bytes * self.reads_per_second


@dataclass(frozen=True)
class ReadCosts:
    """Scattered reads at one depth: a request of n bytes takes request + n * byte seconds."""

    request_seconds: float
    byte_seconds: float
    largest_bytes: int      # longer requests are hardly faster per byte, and less parallel
    stream_seconds: float   # of a byte of a stream, in neighbouring requests of STREAM_REQUEST


@dataclass(frozen=True)
class DeviceProfile:
    """Rates over a grid of read sizes and depths for each pattern; ValueError when it has holes."""

    device: FlashDevice
    reader: str             # which back end measured
    direct: bool            # False: through the page cache
    measured_at: str        # ISO 8601, with the offset from UTC
    span_bytes: int         # length of the file that was read
    measurements: tuple[Measurement, ...]

    def __post_init__(self) -> None:
        check(_is_time(self.measured_at), 'measured_at', self.measured_at,
              'a date and time in ISO 8601')
        check_integers(self, ['span_bytes'])
        check(len(self.measurements) > 0, 'measurements', self.measurements, 'at least one')
        for index, measurement in enumerate(self.measurements):
            _check_measurement(f'measurements[{index}]', measurement)
        grid = {measurement[:3] for measurement in self.measurements}
        for pattern in PATTERNS:
            for size in self.sizes:
                for depth in self.depths:
                    if (pattern, size, depth) not in grid:
                        raise FieldError('measurements', f'lack {pattern} reads of {size} bytes, '
                                         f'{depth} in flight')

    @cached_property
    def sizes(self) -> list[int]:
        """Measured read sizes in bytes, ascending."""
        return sorted({measurement.read_bytes for measurement in self.measurements})

    @cached_property
    def depths(self) -> list[int]:
        """Measured numbers of reads in flight, ascending."""
        return sorted({measurement.in_flight for measurement in self.measurements})

    def read_seconds(self, read_bytes: ArrayLike, in_flight: float,
                     pattern: str = 'random') -> NDArray[np.float64]:
        """Seconds that each read takes of the device, so many being in flight; any shape.

        Between measured sizes the time is linear in the bytes, between depths in the logarithm of
        the depth. Shorter reads cost as much as the shortest, longer ones run at its rate.
        """
        table = self._tables[pattern]
        at_depth = [np.interp(np.log2(in_flight), np.log2(self.depths), column)
                    for column in table.T]
        read_bytes, largest = np.asarray(read_bytes, np.float64), self.sizes[-1]
        within = np.interp(np.minimum(read_bytes, largest), self.sizes, at_depth)
        return within * np.maximum(read_bytes / largest, 1.0)

    def floor_seconds(self, read_bytes: float, reads: float,
                      pattern: str | None = None) -> float:
        """The least time for so many bytes in so many reads, at the best depth.

        `pattern` None: in the better pattern. Short reads one after the other may be far faster
        than scattered ones, as systems put them together.
        """
        if read_bytes <= 0 or reads <= 0:
            return 0.0
        return reads * min(float(self.read_seconds(read_bytes / reads, depth, tried))
                           for tried in PATTERNS if pattern in (None, tried)
                           for depth in self.depths)

    @property
    def sequential_bytes_per_second(self) -> float:
        """The best rate of sequential reads of any size at any depth."""
        return max(measurement.bytes_per_second for measurement in self.measurements
                   if measurement.pattern == 'sequential')

    def costs(self, in_flight: int) -> ReadCosts:
        """The line through the times of scattered reads that is least wrong in proportion."""
        sizes = np.array(self.sizes, np.float64)
        seconds = self.read_seconds(sizes, in_flight)
        lines = np.stack([np.ones_like(sizes), sizes], axis=1) / seconds[:, None]
        request, byte = np.linalg.lstsq(lines, np.ones_like(sizes), rcond=None)[0]
        if byte <= 0:       # too noisy or too few sizes for a slope
            byte = seconds[-1] / sizes[-1]
            request = seconds[0] - byte * sizes[0]
        request = max(request, _LEAST_SECONDS)
        useful = _USEFUL / (1 - _USEFUL) * request / byte
        stream = self.read_seconds(STREAM_REQUEST, in_flight, 'sequential') / STREAM_REQUEST
        return ReadCosts(float(request), float(byte), int(np.clip(useful, sizes[0], sizes[-1])),
                         float(stream))

    @cached_property
    def _tables(self) -> dict[str, NDArray[np.float64]]:
        """Seconds per read of each pattern, [depths, sizes].

        Measurements are noisy, but no read takes longer than a longer one would.
        """
        seconds = {m[:3]: 1 / m.reads_per_second for m in self.measurements}
        tables = {}
        for pattern in PATTERNS:
            table = np.array([[seconds[pattern, size, depth] for size in self.sizes]
                              for depth in self.depths])
            tables[pattern] = np.minimum.accumulate(table[:, ::-1], axis=1)[:, ::-1]
        return tables

    def save(self, path: Path) -> None:
        """Raises OSError."""
        write_file(path, yaml_text({
            'profile_version': PROFILE_VERSION, 'device': asdict(self.device),
            'reader': self.reader, 'direct': self.direct, 'measured_at': self.measured_at,
            'span_bytes': self.span_bytes,
            'measurements': [[*m[:3], round(m.reads_per_second, 1)] for m in self.measurements],
        }))

    @classmethod
    def load(cls, path: Path) -> 'DeviceProfile':
        """Raises ReadFailedError, and ValueError naming the field that is wrong."""
        try:
            data = parsed_yaml(yaml_file(path))
            version = data.pop('profile_version', None) if isinstance(data, dict) else None
            check(version == PROFILE_VERSION, 'profile_version', version,
                  f'{PROFILE_VERSION}; probe the store again')
            return structured(cls, data)
        except OSError as error:
            raise ReadFailedError(f'{path}: {error.strerror}.') from None
        except ValueError as error:
            raise ValueError(f'{path} is not a device profile: {error}') from None


def usable_profile(folder: Path) -> tuple[DeviceProfile | None, str]:
    """The profile of a store, if it is of the device that the store is on, and a line to log.

    A profile only makes reads faster, so one that is missing, broken or of another device is
    left aside, never an error.
    """
    path = folder / PROFILE
    if not path.is_file():
        return None, 'no device profile: only neighbours are read together; see `flash_llm probe`'
    try:
        profile, device = DeviceProfile.load(path), FlashDevice.of(folder)
    except (ReadFailedError, ValueError, OSError) as error:
        return None, f'the device profile is not used: {error}'
    if profile.device != device:
        return None, (f'the device profile is not used: it is of {profile.device}, the store is '
                      f'on {device}; run `flash_llm probe` here')
    return profile, f'reads are planned by {path}, measured at {profile.measured_at}'


def _check_measurement(where: str, measurement: Measurement) -> None:
    pattern, read_bytes, in_flight, rate = measurement
    check(pattern in PATTERNS, f'{where}.pattern', pattern, f'one of {", ".join(PATTERNS)}')
    for name, value in (('read_bytes', read_bytes), ('in_flight', in_flight)):
        check(0 < value <= _MOST, f'{where}.{name}', value, f'an integer from 1 to {_MOST}')
    check(rate > 0, f'{where}.reads_per_second', rate, 'a positive number')


def _is_time(value: str) -> bool:
    try:
        return datetime.fromisoformat(value) is not None
    except ValueError:
        return False
