"""What the matrices of sections meet while the model reads text, kept on disk."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from flash_llm_ros.engine import Engine
from flash_llm_ros.engine.model.model import Model
from flash_llm_ros.store.geometry import ATTENTION_SECTIONS, MODEL_WIDE
from flash_llm_ros.store.output_file import OutputFile

_LARGEST = np.finfo(np.float16).max
SectionKey = tuple[str, int]        # name and layer


class Recording:
    """A file of float16 a section: half the bytes, a two thousandth of the value."""

    def __init__(self, folder: Path, tokens: int) -> None:
        self.folder, self._tokens = folder, tokens

    def path(self, name: str, layer: int) -> Path:
        return self.folder / (f'{name}.f16' if layer == MODEL_WIDE else f'{layer:03d}.{name}.f16')

    def read(self, name: str, layer: int) -> NDArray[np.float32]:
        """Float32 [tokens, row values]."""
        halves = np.fromfile(self.path(name, layer), np.float16)
        return halves.reshape(self._tokens, -1).astype(np.float32)


class InputRecorder:
    """Observes a forward pass and appends what enters each of some sections to a recording."""

    def __init__(self, recording: Recording, model: Model, sections: Sequence[SectionKey]) -> None:
        self._model, self._open = model, ExitStack()
        self._names: dict[int, list[str]] = {}
        self._files = {}
        for name, layer in sections:
            self._names.setdefault(layer, []).append(name)
            self._files[name, layer] = OutputFile(recording.path(name, layer))
            self._open.callback(self._files[name, layer].close, sync=False)

    def __enter__(self) -> 'InputRecorder':
        self._model.observer = self
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self._model.observer = None
        self._open.close()

    def feed_forward(self, layer: int, ffn_input: NDArray[np.float32],
                     active: NDArray[np.uint8] | None) -> None:
        names, tokens = self._names.get(layer, ()), len(ffn_input)
        of_attention = (self._model.attention.section_inputs(layer, tokens)
                        if set(names) & set(ATTENTION_SECTIONS) else {})
        for name in names:
            self._write(name, layer, of_attention[name] if name in of_attention else
                        self._model.feed_forward.activations[:tokens] if name == 'down' else
                        ffn_input)

    def passed(self, tokens: int) -> None:
        """Call it behind every pass."""
        for name in self._names.get(MODEL_WIDE, ()):
            self._write(name, MODEL_WIDE, self._model.attention.final_norm(0, tokens))

    def _write(self, name: str, layer: int, inputs: NDArray[np.float32]) -> None:
        halves = np.clip(inputs, -_LARGEST, _LARGEST).astype(np.float16)
        self._files[name, layer].write(halves.data)


def record(engine: Engine, tokens: NDArray[np.int64], sections: Sequence[SectionKey],
           folder: Path, progress: Callable[[int, int], None]) -> Recording:
    """Run tokens through the engine in exact mode, cut into pieces of the context's length.

    `sections` are bundles, or rows of dense blocks, of attention or of the head. RAM does not grow
    with the text.
    """
    model, context = engine.model, engine.config.context_length
    folder.mkdir(parents=True)
    recording = Recording(folder, len(tokens))
    with InputRecorder(recording, model, sections) as recorder:
        for start in range(0, len(tokens), context):
            piece = tokens[start:start + context]
            for position in range(0, len(piece), model.chunk):
                part = piece[position:position + model.chunk]
                model.forward(part, position, dense=True)
                recorder.passed(len(part))
                progress(start + position + len(part), len(tokens))
    return recording
