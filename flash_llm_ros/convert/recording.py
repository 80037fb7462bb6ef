"""What enters the feed-forward blocks while the model reads text, kept on disk."""

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from flash_llm_ros.engine import Engine
from flash_llm_ros.store.output_file import OutputFile

_LARGEST = np.finfo(np.float16).max


class Recording:
    """FFN inputs, a file of float16 a layer: half the bytes, a two thousandth of the value."""

    def __init__(self, folder: Path, hidden_size: int) -> None:
        self.folder, self._hidden_size = folder, hidden_size

    def path(self, layer: int) -> Path:
        return self.folder / f'{layer:03d}.f16'

    def read(self, layer: int) -> NDArray[np.float32]:
        """FFN inputs of a layer, float32 [tokens, d]."""
        halves = np.fromfile(self.path(layer), np.float16)
        return halves.reshape(-1, self._hidden_size).astype(np.float32)


class FfnRecorder:
    """Observes a forward pass and appends what enters each layer's block to a recording."""

    def __init__(self, recording: Recording, layers: int) -> None:
        self._open = ExitStack()
        self._files = []
        for layer in range(layers):
            self._files.append(OutputFile(recording.path(layer)))
            self._open.callback(self._files[-1].close, sync=False)

    def __enter__(self) -> 'FfnRecorder':
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self._open.close()

    def feed_forward(self, layer: int, ffn_input: NDArray[np.float32],
                     active: NDArray[np.uint8] | None) -> None:
        halves = np.clip(ffn_input, -_LARGEST, _LARGEST).astype(np.float16)
        self._files[layer].write(halves.data)


def record(engine: Engine, tokens: NDArray[np.int64], folder: Path,
           progress: Callable[[int, int], None]) -> Recording:
    """Run tokens through the engine in exact mode, cut into pieces of the context's length.

    RAM does not grow with the text.
    """
    model, context = engine.model, engine.config.context_length
    folder.mkdir(parents=True)
    recording = Recording(folder, model.spec.hidden_size)
    with FfnRecorder(recording, model.spec.layers) as model.observer:
        for start in range(0, len(tokens), context):
            piece = tokens[start:start + context]
            for position in range(0, len(piece), model.chunk):
                model.forward(piece[position:position + model.chunk], position, dense=True)
                progress(start + min(position + model.chunk, len(piece)), len(tokens))
    model.observer = None
    return recording
