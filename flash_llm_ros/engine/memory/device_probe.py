"""Measures a device profile with the reader that the engine uses."""

from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from pathlib import Path

from flash_llm_ros.store.device_profile import PATTERNS, DeviceProfile, Measurement
from flash_llm_ros.store.errors import ErrorCode, FlashLlmError, ReadFailedError
from flash_llm_ros.store.flash_device import FlashDevice

SIZES = (512, 4096, 16384, 65536, 262144, 1048576)
DEPTHS = (1, 4, 16, 64)
SMALL_SPAN = 64 * 2**20     # bytes that a device's own cache may hold
_ROUNDS = 2


def probe(file: str | Path, seconds: float,
          progress: Callable[[str, int, int], None]) -> DeviceProfile:
    """Read `file` for about so long in every size, depth and pattern; the better of two rounds.

    Only whoever else uses the device makes it slower, hence the better one. Reads are direct
    where the file system allows it, and shorter than 4 KiB where the device does. `progress` is
    called with what is done, how far and of how much. Raises FlashLlmError: READ_FAILED, or
    INVALID_PARAMETER without the native core or for a file of less than 4 KiB.
    """
    try:
        from flash_llm_ros import _native
    except ImportError as error:
        raise FlashLlmError(ErrorCode.INVALID_PARAMETER, 'core is numpy, whose reads say nothing '
                            f'of the device; probing needs the native core ({error}).') from None
    file = Path(file)
    try:
        span, device = file.stat().st_size, FlashDevice.of(file)
    except OSError as error:
        raise ReadFailedError(f'{file}: {error.strerror}.') from None
    if span < SIZES[1]:
        raise FlashLlmError(ErrorCode.INVALID_PARAMETER, f'{file} is {span} bytes long; it must '
                            f'have at least {SIZES[1]} to be measured.')
    cases = list(_cases(span, _native.measure_reads, file))
    best: dict[tuple[str, int, int], float] = {}
    share = seconds / (_ROUNDS * len(cases))
    for number in range(_ROUNDS * len(cases)):
        pattern, size, depth = cases[number % len(cases)]
        found = _native.measure_reads(file, size, depth, share, pattern, checksum=False)
        rate = found['reads'] / found['seconds']
        best[pattern, size, depth] = max(rate, best.get((pattern, size, depth), 0.0))
        progress('probing', number + 1, _ROUNDS * len(cases))
    return DeviceProfile(device, found['reader'], found['direct'],
                         datetime.now(timezone.utc).isoformat(timespec='seconds'), span,
                         tuple(Measurement(*case, rate) for case, rate in best.items()))


def _cases(span: int, measure: Callable[..., dict], file: Path) -> Iterator[tuple[str, int, int]]:
    for size in SIZES:
        if size > span or (size < SIZES[1] and not _reads_directly(measure, file, size)):
            continue
        yield from ((pattern, size, depth) for pattern in PATTERNS for depth in DEPTHS)


def _reads_directly(measure: Callable[..., dict], file: Path, size: int) -> bool:
    """Whether reads of this size bypass the page cache as longer ones do."""
    direct = [measure(file, length, 1, 1e-6, 'random', checksum=False)['direct']
              for length in (size, SIZES[1])]
    return direct[0] == direct[1]
