"""Mode aggressive: only the likely rows of the output head are read, a resident sketch chooses.

A sketch of low rank scores all tokens. The rows of the best ones are read from flash, and their
logits are computed exactly; the others keep the sketch's.
"""

import numpy as np
from numpy.typing import NDArray

from flash_llm_ros.engine.memory.window import Window
from flash_llm_ros.engine.model.graph_loader import Feeds, GraphLoader
from flash_llm_ros.model_spec import ModelSpec
from flash_llm_ros.store.aggressive import HEAD_GRAPH, HEAD_SKETCH
from flash_llm_ros.store.flash_store import FlashStore
from flash_llm_ros.store.tensor_file import TensorFile

_ROWS_AT_ONCE = 256


class HeadShortlist:
    """Stands in for the window's output head."""

    def __init__(self, store: FlashStore, threads: int, rows: int) -> None:
        spec = store.manifest.model
        self._rows = min(rows, spec.embedding.vocab_size)
        self._decoded = np.zeros((min(_ROWS_AT_ONCE, self._rows), spec.hidden_size), np.float32)
        self._hidden_size = spec.hidden_size
        self._loader = GraphLoader(str(store.path), threads, prepack=True)
        with TensorFile(store.path / HEAD_SKETCH) as tensors:
            self._session = self._loader.load(store.content(HEAD_GRAPH), tensors, 'head.',
                                              self._probe)
            tensors.drop_page_cache()

    def logits(self, window: Window, normed: NDArray[np.float32],
               out: NDArray[np.float32]) -> None:
        """Float32 [n, d] -> [n, vocabulary]."""
        for x, row in zip(normed, out, strict=True):
            row[:] = self._session.run(None, {'normed': x[None]})[0][0]
            best = np.sort(np.argpartition(row, -self._rows)[-self._rows:])
            for start in range(0, len(best), len(self._decoded)):
                tokens = best[start:start + len(self._decoded)]
                rows = self._decoded[:len(tokens)]
                window.head_rows(tokens, rows)
                row[tokens] = rows @ x

    def _probe(self) -> Feeds:
        return {'normed': np.sin(np.arange(self._hidden_size, dtype=np.float32))[None]}


def shortlist_scratch_bytes(spec: ModelSpec, rows: int) -> int:
    """A sketch's output, its order, and the rows that are decoded at once."""
    return spec.embedding.vocab_size * (4 + 8) + min(rows, _ROWS_AT_ONCE) * spec.hidden_size * 4
