"""Writes neurons.bin: rows in, checksummed groups out, one section after the other."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from flash_llm_ros.store.checksum import group_checksums
from flash_llm_ros.store.geometry import CHECKSUM_BYTES, Geometry, Section
from flash_llm_ros.store.output_file import OutputFile


class NeuronWriter:
    """Append sections in the order of the geometry's runs, then close."""

    def __init__(self, path: Path, geometry: Geometry, identity: int) -> None:
        self._geometry, self._identity = geometry, identity
        self._group = 0
        self._pending = list(geometry.runs())
        self._file = OutputFile(path)

    def write(self, section: Section, parts: Iterable[NDArray[np.float32]],
              copy: int = 0, root: NDArray[np.float32] | None = None) -> None:
        """Write a whole section; `parts` yields float32 [bundles, rows, row values] in their order.

        `root`: as `RowCodec.encode` asks for. Raises ValueError when sections come in another
        order, bundles are missing, or a weight is more than the codec can hold.
        """
        self.write_encoded(section, (self._encoded(section, part, root) for part in parts), copy)

    def write_encoded(self, section: Section, parts: Iterable[NDArray[np.uint8]],
                      copy: int = 0) -> None:
        """As `write`, for uint8 [bundles, bundle_bytes] that are encoded already."""
        if not self._pending or self._pending.pop(0) != (section, copy):
            raise ValueError(f'section {section.label} was written out of order')
        rest = np.empty((0, section.bundle_bytes), np.uint8)
        written = 0
        for bundles in parts:
            rest = np.concatenate([rest, bundles])
            whole = len(rest) // section.bundles_per_group * section.bundles_per_group
            self._put(section, rest[:whole])
            written += whole
            rest = rest[whole:]
        self._put(section, rest)
        if written + len(rest) != section.bundles:
            raise ValueError(f'section {section.label} got {written + len(rest)} bundles '
                             f'instead of {section.bundles}')

    def close(self) -> None:
        self._file.close()
        if self._pending:
            raise ValueError(f'section {self._pending[0][0].label} was not written')

    def _encoded(self, section: Section, part: NDArray[np.float32],
                 root: NDArray[np.float32] | None) -> NDArray[np.uint8]:
        rows = np.ascontiguousarray(part, dtype=np.float32).reshape(-1, section.row_values)
        try:
            return section.codec.encode(rows, root).reshape(-1, section.bundle_bytes)
        except ValueError as error:
            raise ValueError(f'{section.label}: {error}') from None

    def _put(self, section: Section, bundles: NDArray[np.uint8]) -> None:
        """Pad, seal and write `bundles`; only the section's last group may be partly filled."""
        count = -(-len(bundles) // section.bundles_per_group)
        groups = np.zeros((count, self._geometry.group_bytes), np.uint8)
        for index in range(count):
            first = index * section.bundles_per_group
            body = bundles[first:first + section.bundles_per_group].reshape(-1)
            groups[index, :len(body)] = body
        sums = group_checksums(self._identity, self._group, groups[:, :-CHECKSUM_BYTES])
        groups[:, -CHECKSUM_BYTES:] = sums.astype('<u4')[:, None].view(np.uint8)
        self._file.write(groups.data)
        self._group += count
