"""A checkpoint whose feed-forward weights come from a file of their own."""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from flash_llm_ros.checkpoint.checkpoint import Checkpoint
from flash_llm_ros.checkpoint.errors import CheckpointError
from flash_llm_ros.checkpoint.ffn_file import FfnFile


class ReplacedFfn(Checkpoint):
    """Everything but the feed-forward blocks is the base's. CheckpointError where they differ."""

    def __init__(self, base: Checkpoint, path: Path) -> None:
        self._base, self._ffn = base, FfnFile(path)
        if not base.spec.feed_forward.gated:
            raise CheckpointError(f'{base.path}: its blocks are without gate; {path} has gates')
        self.path, self.family, self.scales = path, base.family, base.scales
        self.tokenizer_json, self.chat_template = base.tokenizer_json, base.chat_template
        self.special_tokens, self.doubts = base.special_tokens, base.doubts
        self.files = (*base.files, path)
        block = replace(base.spec.feed_forward, activation='relu',
                        relu_threshold=self._ffn.relu_threshold)
        self.spec = replace(base.spec, name=path.stem, feed_forward=block)
        self._names = frozenset(self._ffn.names)
        for name, tensor in base.tensors.items():
            part = name.rpartition('.')[2]
            if part not in ('gate', 'up', 'down'):
                continue
            if name not in self._names:
                raise CheckpointError(f'{path} lacks {name}, which {base.path} has')
            if (found := self._ffn.shape(name)) != tensor.shape:
                raise CheckpointError(f'{path}: tensor {name} has shape {found}; that of '
                                      f'{base.path} has {tensor.shape}')
        if unknown := self._names - base.tensors.keys():
            raise CheckpointError(f'{path} has {min(unknown)}, which {base.path} has not')

    def shape(self, name: str) -> tuple[int, ...]:
        return self._ffn.shape(name) if name in self._names else self._base.shape(name)

    def rows(self, name: str, start: int = 0, stop: int | None = None) -> NDArray[np.float32]:
        """As trained: scales are in the file's weights already."""
        source = self._ffn if name in self._names else self._base
        return source.rows(name, start, stop)

    def _stored_rows(self, name: str, start: int, stop: int | None) -> NDArray[np.float32]:
        return self.rows(name, start, stop)

    def stored_names(self) -> Iterable[str]:
        return self._base.stored_names()
