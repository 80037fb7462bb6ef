"""What a conversion will write, and what the disk must have for it; nothing is written yet."""

from collections.abc import Mapping
import os
from pathlib import Path
import shutil

import numpy as np

from flash_llm_ros.checkpoint.checkpoint import Checkpoint
from flash_llm_ros.convert.options import ConversionOptions
from flash_llm_ros.convert.section_formats import SectionFormats
from flash_llm_ros.convert.section_rounding import rounding_bytes
from flash_llm_ros.model_spec import ModelSpec
from flash_llm_ros.store import flash_store as names
from flash_llm_ros.store.block_quantisation import relative_error
from flash_llm_ros.store.flash_store import FlashStore
from flash_llm_ros.store.manifest import FileFacts, Manifest
from flash_llm_ros.store.resident_layout import attention_layout
from flash_llm_ros.store.tokenizer_tables import tokenizer_tables
from flash_llm_ros.store.writer import StoreFormat, planned_geometry

# Squared error relative to the matrix: 4-bit sources stay below 1e-4, where keys are balanced below
# 2e-4 (Qwen2.5-Coder-1.5B), unrounded ones reach 3e-3.
_Q4_ERROR = 4e-4
_SMALL_FILES = 4 << 20      # graphs and the manifest


class Forecast:
    """The form that a checkpoint gets with these options, and what follows from it."""

    def __init__(self, checkpoint: Checkpoint, options: ConversionOptions) -> None:
        exact, layout = options.neurons == 'fp16', layout_of(checkpoint.spec)
        resident = options.resident or ('fp32' if exact else _resident(checkpoint))
        self.sections = SectionFormats(checkpoint, layout, resident, options)
        self.form = StoreFormat(layout, self.sections.first, resident, options.block)
        self._checkpoint = checkpoint
        # Written anew in other formats, or in the order of their use, beside the first ones.
        self._twice = bool(self.sections.candidates) or (
            options.calibrate and checkpoint.spec.feed_forward.sparse_by_nature)

    @property
    def disk_bytes(self) -> int:
        """The most that is on disk at once."""
        spec, copies = self._checkpoint.spec, 2 if self._twice else 1
        return (copies * planned_geometry(spec, self.form).file_bytes
                + _resident_bytes(spec, self.form)
                + rounding_bytes(self.sections)
                + 3 * len(self._checkpoint.tokenizer_json.encode()) + _SMALL_FILES)

    def check_disk(self, target: Path) -> None:
        """Raise OSError where the folder of `target` is not there, or has not the room."""
        folder = target.parent
        if not folder.is_dir():
            raise FileNotFoundError(f'{folder} is no folder; the one that a store is to be in must '
                                    'be there (mkdir -p makes it).')
        if not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError(f'{folder} cannot be written; a store must be in a folder that '
                                  'can.')
        if (free := shutil.disk_usage(folder).free) < self.disk_bytes:
            raise OSError(f'{folder} has {free / 1e6:.0f} MB free; this conversion takes up to '
                          f'{self.disk_bytes / 1e6:.0f} MB.')

    def store(self, path: Path) -> FlashStore:
        """As it will be, of what is known before: for planning, not for reading."""
        tokenizer = self._checkpoint.tokenizer_json
        sizes = {names.TOKENIZER: len(tokenizer.encode())}
        if (tables := tokenizer_tables(tokenizer)) is not None:
            sizes[names.TOKENIZER_TABLES] = sum(table.nbytes for table in tables.values())
        return planned_store(path, self._checkpoint.spec, self.form, sizes)


def planned_store(path: Path, spec: ModelSpec, form: StoreFormat,
                  text_files: Mapping[str, int]) -> FlashStore:
    """A store that is not there yet; `text_files`: bytes of the tokenizer's files."""
    geometry = planned_geometry(spec, form)
    sizes = {names.NEURONS: geometry.file_bytes, names.RESIDENT: _resident_bytes(spec, form),
             **text_files}
    files = {name: FileFacts(bytes=size, sha256='') for name, size in sizes.items()}
    return FlashStore(path, Manifest(spec, form.layout, form.resident, geometry, '', files))


def layout_of(spec: ModelSpec) -> str:
    """Whole neurons lie together where predictors may choose them, or where there is no gate."""
    block = spec.feed_forward
    return 'bundled' if block.sparse_by_nature or not block.gated else 'split'


def _resident_bytes(spec: ModelSpec, form: StoreFormat) -> int:
    return sum(int(np.prod(shape)) * np.dtype(dtype).itemsize
               for dtype, shape in attention_layout(spec, form.resident).values())


def _resident(checkpoint: Checkpoint) -> str:
    """4 bits where the source has no more to keep, 8 bits otherwise; three layers tell."""
    spec = checkpoint.spec
    last = spec.layers - 1
    error = max(relative_error(checkpoint.rows(f'layers.{layer}.{part}'), 'q4')
                for layer in sorted({0, last // 2, last})
                for part in (('conv_in', 'conv_out') if spec.convolves(layer) else 'qo'))
    return 'q4' if error < _Q4_ERROR else 'q8'
