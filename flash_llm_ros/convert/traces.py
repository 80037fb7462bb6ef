"""What enters the feed-forward blocks while the model reads text, kept on disk."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from flash_llm_ros.convert.block_stand_in import BlockStandIn
from flash_llm_ros.engine import Engine
from flash_llm_ros.engine.model.feed_forward.block import FeedForwardBlock

LEAST_TOKENS = 64
_LARGEST = np.finfo(np.float16).max


class Traces:
    """FFN inputs, a file of float16 a layer: half the bytes, a two thousandth of the value."""

    def __init__(self, folder: Path, layers: int, hidden_size: int) -> None:
        self.folder, self.layers, self.hidden_size = folder, layers, hidden_size

    @property
    def tokens(self) -> int:
        """Tokens that every layer has."""
        return min(path.stat().st_size if path.exists() else 0
                   for path in map(self.path, range(self.layers))) // (2 * self.hidden_size)

    def path(self, layer: int) -> Path:
        return self.folder / f'{layer:03d}.f16'

    def cut(self, tokens: int) -> None:
        """Forget what comes after so many tokens."""
        for layer in range(self.layers):
            with self.path(layer).open('ab') as file:
                file.truncate(tokens * 2 * self.hidden_size)

    def read(self, layer: int, start: int = 0, stop: int | None = None) -> NDArray[np.float32]:
        """FFN inputs of a layer, float32 [tokens, d]."""
        stop = self.tokens if stop is None else stop
        halves = np.fromfile(self.path(layer), np.float16, (stop - start) * self.hidden_size,
                             offset=2 * start * self.hidden_size)
        return halves.reshape(-1, self.hidden_size).astype(np.float32)


class TraceRecorder(BlockStandIn):
    """Stands before an engine's feed-forward block and appends its inputs to traces."""

    def __init__(self, inner: FeedForwardBlock, traces: Traces) -> None:
        super().__init__(inner)
        self._files = [traces.path(layer).open('ab') for layer in range(traces.layers)]

    def run(self, layer: int, x: NDArray[np.float32], out: NDArray[np.float32],
            dense: bool) -> None:
        self._files[layer].write(np.clip(x, -_LARGEST, _LARGEST).astype(np.float16).data)
        self._inner.run(layer, x, out, dense)

    def flush(self) -> None:
        for file in self._files:
            file.flush()

    def close(self) -> None:
        for file in self._files:
            file.close()


def record(engine: Engine, tokens: list[int], folder: Path,
           progress: Callable[[int, int], None]) -> Traces:
    """Run tokens through the engine in exact mode, cut into pieces of the context's length.

    What an interrupted recording left in the folder, of the same store and tokens, is gone on
    from, piece by piece. RAM does not grow with the text. Raises ValueError when there is too
    little of it.
    """
    if len(tokens) < LEAST_TOKENS:
        raise ValueError(f'the calibration text has {len(tokens)} tokens; it must have at least '
                         f'{LEAST_TOKENS}')
    model, context = engine.model, engine.config.context_length
    folder.mkdir(parents=True, exist_ok=True)
    traces = Traces(folder, model.spec.layers, model.spec.hidden_size)
    there = min(traces.tokens, len(tokens))
    done = there if there == len(tokens) else there // context * context
    traces.cut(done)
    ids = np.array(tokens, np.int64)
    recorder, plain = TraceRecorder(model.feed_forward, traces), model.feed_forward
    model.feed_forward = recorder
    try:
        for start in range(done, len(ids), context):
            piece = ids[start:start + context]
            for position in range(0, len(piece), model.chunk):
                model.forward(piece[position:position + model.chunk], position, dense=True)
                progress(start + min(position + model.chunk, len(piece)), len(ids))
            recorder.flush()
    finally:
        recorder.close()
        model.feed_forward = plain
    if done == len(ids):
        progress(done, done)
    return traces
