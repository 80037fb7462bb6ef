"""Reads neurons.bin a section at a time, as float32: for offline work, without a window."""

from collections.abc import Iterator
import os

import numpy as np
from numpy.typing import NDArray

from flash_llm_ros.store.checksum import group_checksums
from flash_llm_ros.store.errors import ChecksumError, ReadFailedError
from flash_llm_ros.store.flash_store import FlashStore
from flash_llm_ros.store.geometry import CHECKSUM_BYTES, MODEL_WIDE, Section

_BYTES_AT_ONCE = 4 << 20


class NeuronReader:
    """A context manager; takes the RAM of the section that is asked for and some megabytes."""

    def __init__(self, store: FlashStore) -> None:
        self.store = store
        self._path, self._geometry = store.neurons, store.manifest.geometry
        try:
            self._fd = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise ReadFailedError(f'{self._path} cannot be opened: {error.strerror}.') from None

    def __enter__(self) -> 'NeuronReader':
        return self

    def __exit__(self, *exception: object) -> None:
        os.close(self._fd)

    def bundles(self, name: str, layer: int = MODEL_WIDE) -> NDArray[np.float32]:
        """A whole section, float32 [bundles, rows, row values]; ReadFailedError, ChecksumError."""
        section = self._geometry.section(name, layer)
        found = np.empty((section.bundles, section.rows, section.row_values), np.float32)
        for start, part in self.parts(section):
            found[start:start + len(part)] = part
        return found

    def parts(self, section: Section, copy: int = 0) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """The section in order, some megabytes at a time, each with its first bundle's number."""
        for first, encoded in self.encoded(section, copy):
            decoded = section.codec.decode(encoded.reshape(-1, section.codec.row_bytes))
            yield first, decoded.reshape(-1, section.rows, section.row_values)

    def encoded(self, section: Section, copy: int = 0
                ) -> Iterator[tuple[int, NDArray[np.uint8]]]:
        """As `parts`, but the bytes as they are stored, uint8 [bundles, bundle_bytes]."""
        step = max(1, _BYTES_AT_ONCE // self._geometry.group_bytes)
        for group in range(0, section.groups, step):
            count = min(step, section.groups - group)
            groups = self._groups(section, copy * section.stride + group, count)
            used = section.bundles_per_group * section.bundle_bytes
            first = group * section.bundles_per_group
            bundles = min(count * section.bundles_per_group, section.bundles - first)
            stored = np.ascontiguousarray(groups[:, :used]).reshape(-1, section.bundle_bytes)
            yield first, stored[:bundles]

    def _groups(self, section: Section, group: int, count: int) -> NDArray[np.uint8]:
        size = self._geometry.group_bytes
        first = section.first_group + group
        data, offset = bytearray(), first * size
        try:
            while len(data) < count * size:
                part = os.pread(self._fd, count * size - len(data), offset + len(data))
                if not part:
                    raise ReadFailedError(
                        f'{self._path} ends at byte {offset + len(data)}, in {section.label}; it '
                        'was truncated. Convert the checkpoint again.')
                data += part
            os.posix_fadvise(self._fd, offset, count * size, os.POSIX_FADV_DONTNEED)
        except OSError as error:
            raise ReadFailedError(f'{self._path}, byte {offset + len(data)} ({section.label}): '
                                  f'{error.strerror}.') from None
        groups = np.frombuffer(data, np.uint8).reshape(count, size)
        stored = np.ascontiguousarray(groups[:, -CHECKSUM_BYTES:]).view('<u4')[:, 0]
        wrong = np.flatnonzero(stored != group_checksums(
            self.store.manifest.identity, first, groups[:, :-CHECKSUM_BYTES]))
        if len(wrong):
            place = first + int(wrong[0])
            raise ChecksumError(f'{self._path}: group {place} ({section.label}, byte '
                                f'{place * size}) does not match its checksum: it is damaged, '
                                'or of another place or store.')
        return groups
