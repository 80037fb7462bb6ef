"""Device profiles computed from a formula, for tests that must know the right answer."""

from pathlib import Path

from flash_llm_ros.store.device_profile import PATTERNS, DeviceProfile, Measurement
from flash_llm_ros.store.flash_device import FlashDevice

SIZES = (512, 4096, 16384, 65536, 262144, 1048576)
DEPTHS = (1, 4, 16, 64)


def linear_profile(folder: Path, request: float = 1e-5, byte: float = 4e-10,
                   latency: float = 8e-5) -> DeviceProfile:
    """A device under `folder` whose reads take request + bytes * byte seconds when it is busy.

    With few in flight they wait `latency` seconds besides, all of them at once. Sequential reads
    take half as long for the request.
    """
    def rate(pattern: str, size: int, depth: int) -> float:
        share = 0.5 if pattern == 'sequential' else 1.0
        return 1 / (share * request + latency / depth + size * byte)

    return DeviceProfile(
        FlashDevice.of(folder), 'threads', True, '2026-01-02T03:04:05+00:00', 1 << 30,
        tuple(Measurement(pattern, size, depth, rate(pattern, size, depth))
              for pattern in PATTERNS for size in SIZES for depth in DEPTHS))
