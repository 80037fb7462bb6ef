"""Which neurons of which sections every token needs: recorded, kept in a file, read back."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple
import zipfile

import numpy as np
from numpy.typing import NDArray

from flash_llm_ros.engine.engine import Engine
from flash_llm_ros.store.errors import ErrorCode, FlashLlmError

_VERSION = 1


class Event(NamedTuple):
    """One look at a section's neurons: predicted to be needed, or used; uint8 [bundles]."""

    section: int
    predicted: bool
    neurons: NDArray[np.uint8]


@dataclass(frozen=True)
class NeuronTrace:
    """Events in the order in which they happened; a bit a neuron.

    `first_group`, `bundles`, `bundles_per_group` int64 [sections] say where neurons lie;
    `sections` int64 and `predicted` uint8 [events]; `bits` uint8, every event from a whole byte
    on.
    """

    model: str
    tokens: int
    group_bytes: int
    file_groups: int
    first_group: NDArray[np.int64]
    bundles: NDArray[np.int64]
    bundles_per_group: NDArray[np.int64]
    sections: NDArray[np.int64]
    predicted: NDArray[np.uint8]
    bits: NDArray[np.uint8]

    def __iter__(self) -> Iterator[Event]:
        begin = 0
        for section, predicted in zip(self.sections, self.predicted, strict=True):
            count = int(self.bundles[section])
            size = -(-count // 8)
            yield Event(int(section), bool(predicted),
                        np.unpackbits(self.bits[begin:begin + size], count=count))
            begin += size

    def first(self, tokens: int) -> 'NeuronTrace':
        """The same trace, cut off after so many tokens."""
        begins = np.flatnonzero(np.diff(self.sections, prepend=self.sections[:1] + 1) < 0)
        events = begins[tokens] if tokens < len(begins) else len(self.sections)
        size = int((-(-self.bundles[self.sections[:events]] // 8)).sum())
        return replace(self, tokens=min(tokens, self.tokens), sections=self.sections[:events],
                       predicted=self.predicted[:events], bits=self.bits[:size])

    @cached_property
    def used_sections(self) -> list[int]:
        """Indices of the sections that the trace has events of."""
        return np.unique(self.sections).tolist()

    def groups(self, predictions: bool) -> tuple[NDArray[np.int64], NDArray[np.uint8],
                                                 NDArray[np.int64], NDArray[np.int64]]:
        """Events as groups of the file: sections, predicted, ends, groups, as replay takes them.

        Without `predictions` only the uses.
        """
        sections, predicted, ends, groups, total = [], [], [], [], 0
        for event in self:
            if event.predicted and not predictions:
                continue
            per_group = int(self.bundles_per_group[event.section])
            found = np.unique(np.flatnonzero(event.neurons) // per_group)
            groups.append(found + self.first_group[event.section])
            total += len(found)
            sections.append(event.section)
            predicted.append(event.predicted)
            ends.append(total)
        return (np.array(sections, np.int64), np.array(predicted, np.uint8),
                np.array(ends, np.int64), np.concatenate([np.empty(0, np.int64), *groups]))

    def save(self, path: Path) -> None:
        with path.open('wb') as file:
            np.savez_compressed(file, version=_VERSION, **vars(self))

    @classmethod
    def load(cls, path: Path) -> 'NeuronTrace':
        """FlashLlmError(INVALID_PARAMETER) where the file is no trace; OSError."""
        try:
            with np.load(path) as data:
                if data['version'] == _VERSION:
                    fields = {name: data[name] for name in cls.__dataclass_fields__}
                    return cls(**{name: value if value.ndim else value.item()
                                  for name, value in fields.items()})
        except (ValueError, KeyError, EOFError, zipfile.BadZipFile):
            pass
        raise FlashLlmError(ErrorCode.INVALID_PARAMETER,
                            f'{path} is no trace of version {_VERSION}; `flash_llm trace` makes '
                            'one.')


class RecordingCore:
    """Stands before a neuron core and notes what is predicted and what is used."""

    def __init__(self, core: Any) -> None:
        self._core = core
        self.sections: list[int] = []
        self.predicted: list[bool] = []
        self.bits: list[NDArray[np.uint8]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._core, name)

    def prefetch(self, section: int, wanted: NDArray[np.uint8], needed: bool = False) -> None:
        if not needed:      # that is the use which comes next
            self._note(section, True, wanted)
        self._core.prefetch(section, wanted, needed)

    def add_rows_sparse(self, section: int, h: NDArray[np.float32], active: NDArray[np.uint8],
                        *others: Any) -> None:
        self._note(section, False, active)
        self._core.add_rows_sparse(section, h, active, *others)

    def bundled_sparse(self, section: int, x: NDArray[np.float32], active: NDArray[np.uint8],
                       *others: Any) -> None:
        self._note(section, False, active)
        self._core.bundled_sparse(section, x, active, *others)

    def _note(self, section: int, predicted: bool, neurons: NDArray[np.uint8]) -> None:
        self.sections.append(section)
        self.predicted.append(predicted)
        self.bits.append(np.packbits(neurons))


def record(engine: Engine, text: str, most_tokens: int,
           progress: Callable[[int, int], None]) -> NeuronTrace:
    """Run `text` through an engine in sparse mode, token by token.

    Takes two bits of RAM a token and neuron. FlashLlmError: INVALID_PARAMETER in exact mode,
    where every token needs everything; EMPTY_PROMPT.
    """
    if engine.config.mode != 'sparse':
        raise FlashLlmError(ErrorCode.INVALID_PARAMETER,
                            f'mode is {engine.config.mode}; a trace needs sparse.')
    tokens = np.array(engine.tokenize(text)[:most_tokens], np.int64)
    if not len(tokens):
        raise FlashLlmError(ErrorCode.EMPTY_PROMPT, 'the text has no tokens.')
    model, geometry = engine.model, engine.geometry
    plain, model.window.core = model.window.core, RecordingCore(model.window.core)
    try:
        for index in range(len(tokens)):
            model.forward(tokens[index:index + 1], index % engine.config.context_length,
                          dense=False)
            progress(index + 1, len(tokens))
        recorded = model.window.core
    finally:
        model.window.core = plain
    return NeuronTrace(
        engine.model_name, len(tokens), geometry.group_bytes, geometry.groups,
        *(np.array([getattr(section, name) for section in geometry.sections], np.int64)
          for name in ('first_group', 'bundles', 'bundles_per_group')),
        np.array(recorded.sections, np.int64), np.array(recorded.predicted, np.uint8),
        np.concatenate(recorded.bits))
