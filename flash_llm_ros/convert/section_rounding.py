"""Rounds the sections that lose something, for the inputs they meet, and measures what that costs.

What is on disk meanwhile lies in the store that is being written: a recording of the inputs, and
every section in each codec that it may get.
"""

from functools import partial
from pathlib import Path
import shutil

import numpy as np
from numpy.typing import NDArray

from flash_llm_ros.checkpoint.checkpoint import Checkpoint
from flash_llm_ros.convert.calibration import opened
from flash_llm_ros.convert.calibration_text import tokens_of
from flash_llm_ros.convert.input_root import input_root
from flash_llm_ros.convert.recording import Recording, record
from flash_llm_ros.convert.rounded_sections import RoundedSections
from flash_llm_ros.convert.rounding_trial import RoundingTrial
from flash_llm_ros.convert.section_formats import SectionFormats
from flash_llm_ros.store.flash_store import RECORDING, FlashStore
from flash_llm_ros.store.geometry import Section
from flash_llm_ros.store.stored_weights import bundles
from flash_llm_ros.store.writer import Progress, Rounded

TRIED_TOKENS = 256
ROUNDING_TOKENS = 8192


def rounding_bytes(formats: SectionFormats) -> int:
    """The most that is on disk beside stores."""
    inputs = sum(formats.specs[index].dim for index in formats.compensated)
    return 2 * ROUNDING_TOKENS * inputs + sum(
        formats.bytes(index, codec) for index in formats.candidates
        for codec in formats.rounded(index))


class SectionRounding:
    """Of a store as it was first written. As a context manager it removes what lies on disk."""

    def __init__(self, checkpoint: Checkpoint, store: FlashStore, formats: SectionFormats,
                 progress: Progress) -> None:
        self._checkpoint, self._store, self._formats = checkpoint, store, formats
        self._folder: Path = store.path / RECORDING
        self._progress = progress
        self._rounded = RoundedSections(self._folder / 'rounded')

    def __enter__(self) -> 'SectionRounding':
        return self

    def __exit__(self, *exception: object) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)

    def run(self, texts: list[str]) -> tuple[tuple[str, ...], dict[str, Rounded]]:
        """The codecs to use, and what `StoreWriter.recode` asks for.

        Sections are rounded for other tokens than they are tried on. Raises FlashLlmError, OSError
        and ValueError.
        """
        formats = self._formats
        with opened(self._store) as engine:
            tokens = tokens_of(engine, texts, TRIED_TOKENS + ROUNDING_TOKENS)
            tried = min(TRIED_TOKENS, engine.config.context_length, len(tokens) // 2)
            sections = [self._section(index) for index in formats.compensated]
            recording = record(engine, tokens[tried:],
                               [(section.name, section.layer) for section in sections],
                               self._folder / 'inputs', partial(self._progress, 'reading text'))
        for done, index in enumerate(formats.candidates, 1):
            self._round(index, recording)
            self._progress('rounding', done, len(formats.candidates))
        codecs = formats.chosen(self._divergences(tokens[:tried]))
        return codecs, {
            self._section(index).label: partial(self._rounded.rows, codec=codecs[index])
            for index in formats.candidates if codecs[index] in formats.rounded(index)}

    def _round(self, index: int, recording: Recording) -> None:
        section, root = self._section(index), None
        if index in self._formats.compensated:
            inputs = recording.path(section.name, section.layer)
            root = input_root(recording.read(section.name, section.layer))
            inputs.unlink()
        for codec in self._formats.rounded(index):
            parts = bundles(self._checkpoint.spec, self._checkpoint.rows, section, 0)
            self._rounded.round(section, codec, parts, root)

    def _divergences(self, tokens: NDArray[np.int64]) -> dict[tuple[int, str], float]:
        found: dict[tuple[int, str], float] = {}
        tries = [(index, codec) for index in self._formats.measured
                 for codec in self._formats.rounded(index)]
        if tries:
            with opened(self._store) as engine:
                trial = RoundingTrial(self._store, engine, tokens)
                for done, (index, codec) in enumerate(tries, 1):
                    section = self._section(index)
                    found[index, codec] = trial.divergence(
                        section, codec, self._rounded.rows(section, codec))
                    self._progress('trying fewer bits', done, len(tries))
        return found

    def _section(self, index: int) -> Section:
        return self._store.manifest.geometry.sections[index]
