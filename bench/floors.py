"""The least time that a token's bytes need: from the device, and through the memory."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
import mmap
import os
from pathlib import Path
import time
from typing import Any

import numpy as np

from flash_llm_ros.engine.memory.window_plan import head_index
from flash_llm_ros.store.aggressive import HEAD_SKETCH
from flash_llm_ros.store.device_profile import usable_profile
from flash_llm_ros.store.flash_store import RESIDENT, FlashStore

_READ = 1 << 20
_READERS = 8
_LARGEST_READ = 512 << 20
_COPY = 64 << 20


class Floors:
    """What this machine's device and memory allow a store."""

    def __init__(self, store: FlashStore, threads: list[int]) -> None:
        self._store = store
        self._profile, _ = usable_profile(store.path)
        self.device_rate = 0.0 if self._profile else direct_read_rate(store.neurons)
        self.copy_rates = {count: copy_rate(count) for count in threads}

    def measure_again(self) -> None:
        """The best is kept: other work slows a copy down, nothing makes it too fast."""
        if self._profile is None:
            self.device_rate = max(self.device_rate, direct_read_rate(self._store.neurons))
        for count, rate in self.copy_rates.items():
            self.copy_rates[count] = max(rate, copy_rate(count))

    def to_dict(self) -> dict[str, Any]:
        profile = self._profile
        return {'profile': profile and profile.measured_at, 'copy_bytes_per_second': {
            str(count): rate for count, rate in self.copy_rates.items()},
            'device_bytes_per_second': (profile.sequential_bytes_per_second if profile
                                        else self.device_rate)}

    @property
    def text(self) -> str:
        """What the rates are, for the legend."""
        copies = ', '.join(f'{rate / 1e9:.1f} GB/s by {count}'
                           for count, rate in self.copy_rates.items())
        device = (f'its profile of {self._profile.measured_at}, at best '
                  f'{self._profile.sequential_bytes_per_second / 1e9:.2f} GB/s' if self._profile
                  else f'sequential direct reads, {self.device_rate / 1e9:.2f} GB/s')
        return f'device ({device}) and memcpy (all weights that a token uses, {copies})'

    def of(self, mode: str, threads: int, active_fraction: float, passes: float, read: float,
           reads: float) -> dict[str, float]:
        """Seconds of a token that reads `read` bytes in `reads` requests, and weights in bytes.

        `passes` over the weights, below 1 where tokens share one.
        """
        weights = passes * weights_per_token(self._store, mode, active_fraction)
        device = (self._profile.floor_seconds(read, reads) if self._profile
                  else read / self.device_rate)
        copy = weights / self.copy_rates[threads]
        return {'weights': weights, 'device_seconds': device, 'copy_seconds': copy,
                'floor': max(device, copy)}


def weights_per_token(store: FlashStore, mode: str, active_fraction: float) -> float:
    """Bytes of weights that one token is computed from, wherever they lie."""
    manifest = store.manifest
    geometry, files = manifest.geometry, manifest.files
    total = float(files[RESIDENT]['bytes'])
    if mode == 'sparse':
        total += files[store.predictor_weights]['bytes']
    elif mode == 'aggressive':
        total += files[HEAD_SKETCH]['bytes']
    for index, section in enumerate(geometry.sections):
        if section.layer >= 0:
            picked = mode == 'aggressive' or (mode == 'sparse' and section.name != 'gate_up')
            total += section.bundles * section.bundle_bytes * (active_fraction if picked else 1)
        elif index == head_index(geometry):
            rows = manifest.aggressive.head_rows if mode == 'aggressive' else section.bundles
            total += min(rows, section.bundles) * section.bundle_bytes
    return total


def direct_read_rate(path: Path, repeats: int = 3) -> float:
    """Bytes per second of sequential direct reads of 1 MiB, eight at once; the best."""
    size = min(path.stat().st_size, _LARGEST_READ)
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECT)
    # Direct I/O asks for aligned memory, and anonymous mappings begin on a page.
    buffers = [mmap.mmap(-1, _READ) for _ in range(_READERS)]

    def read(worker: int) -> None:
        for offset in range(worker * _READ, size, _READERS * _READ):
            wanted = min(_READ, size - offset)
            if os.preadv(descriptor, [buffers[worker]], offset) < wanted:
                raise OSError(f'{path} gave less than {wanted} bytes at {offset}')

    try:
        return max(size / _seconds(read, _READERS) for _ in range(repeats))
    finally:
        os.close(descriptor)


def copy_rate(threads: int, repeats: int = 5) -> float:
    """Bytes per second of a memcpy by this many threads (bytes copied, not moved); the best."""
    size = _COPY // threads
    pairs = [(np.ones(size, np.uint8), np.zeros(size, np.uint8)) for _ in range(threads)]

    def copy(worker: int) -> None:
        np.copyto(pairs[worker][1], pairs[worker][0])

    return max(size * threads / _seconds(copy, threads) for _ in range(repeats))


def _seconds(work: Callable[[int], None], threads: int) -> float:
    with ThreadPoolExecutor(threads) as pool:
        begin = time.perf_counter()
        list(pool.map(work, range(threads)))
        return time.perf_counter() - begin
