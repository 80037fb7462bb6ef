"""Sections in fewer bits than a store has them first: rounded once, tried, then stored."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from flash_llm_ros.convert.input_root import Array
from flash_llm_ros.store.codec import row_codec
from flash_llm_ros.store.geometry import Section
from flash_llm_ros.store.output_file import OutputFile


class RoundedSections:
    """A file for each section and codec, in a folder that is not there yet."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        self._folder = folder

    def round(self, section: Section, codec: str, parts: Iterable[Array],
              root: Array | None) -> None:
        """`parts`: float32 [bundles, rows, row values]; `root`: as `RowCodec.encode` asks for.

        ValueError where a weight is more than the codec can hold, OSError where the disk is full.
        """
        rounding = row_codec(codec, section.codec.dim)
        file = OutputFile(self._path(section, codec))
        try:
            for part in parts:
                rows = np.ascontiguousarray(part, np.float32).reshape(-1, section.row_values)
                file.write(rounding.encode(rows, root).data)
        except ValueError as error:
            raise ValueError(f'{section.label}: {error}') from None
        finally:
            file.close(sync=False)

    def rows(self, section: Section, codec: str) -> NDArray[np.uint8]:
        """As the codec has them, uint8 [bundles, rows of one * row bytes]."""
        return np.fromfile(self._path(section, codec), np.uint8).reshape(section.bundles, -1)

    def _path(self, section: Section, codec: str) -> Path:
        return self._folder / f'{section.layer:03d}.{section.name}.{codec}'
