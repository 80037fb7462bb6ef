"""What enters the feed-forward blocks while the model reads text, kept on disk."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from flash_llm_ros.engine import Engine
from flash_llm_ros.engine.feed_forward import FeedForward

_LEAST_TOKENS = 64


class TraceRecorder:
    """Stands before an engine's feed-forward block and writes its inputs, a file a layer."""

    def __init__(self, inner: FeedForward, folder: Path, layers: int, hidden_size: int) -> None:
        self._inner, self._hidden_size = inner, hidden_size
        folder.mkdir(parents=True)
        self._paths = [folder / f'{layer:02d}.f32' for layer in range(layers)]
        self._files = [path.open('wb') for path in self._paths]

    @property
    def active_neurons(self) -> int:
        return self._inner.active_neurons

    @property
    def total_neurons(self) -> int:
        return self._inner.total_neurons

    def begin(self, dense: bool, last: bool) -> None:
        self._inner.begin(dense, last)

    def run(self, layer: int, x: NDArray[np.float32], out: NDArray[np.float32],
            dense: bool) -> None:
        self._files[layer].write(np.ascontiguousarray(x).data)
        self._inner.run(layer, x, out, dense)

    def close(self) -> None:
        for file in self._files:
            file.close()

    def read(self, layer: int) -> NDArray[np.float32]:
        """FFN inputs of a layer, float32 [tokens, d]."""
        return np.fromfile(self._paths[layer], np.float32).reshape(-1, self._hidden_size)


def record(engine: Engine, text: str, folder: Path, most_tokens: int,
           progress: Callable[[int, int], None]) -> TraceRecorder:
    """Run `text` through the engine in exact mode, cut into pieces of the context's length.

    Raises ValueError when there is too little text to learn from.
    """
    model, context = engine.model, engine.config.context_length
    tokens = np.array(engine.tokenize(text)[:most_tokens], np.int64)
    if len(tokens) < _LEAST_TOKENS:
        raise ValueError(f'the calibration text has {len(tokens)} tokens; it must have at least '
                         f'{_LEAST_TOKENS}')
    recorder = TraceRecorder(model.feed_forward, folder, model.spec.layers, model.spec.hidden_size)
    model.feed_forward = recorder
    try:
        for start in range(0, len(tokens), context):
            piece = tokens[start:start + context]
            for position in range(0, len(piece), model.chunk):
                model.forward(piece[position:position + model.chunk], position, dense=True)
                progress(start + min(position + model.chunk, len(piece)), len(tokens))
    finally:
        recorder.close()
    return recorder
