"""A checkpoint: one model specification and named tensors, read by rows."""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType

import numpy as np
from numpy.typing import NDArray

from flash_llm_ros.checkpoint.weight_scales import WeightScales
from flash_llm_ros.model_spec import ModelSpec


class CheckpointError(ValueError):
    """The checkpoint cannot be used; the sentence says what is wrong with which file."""


class Checkpoint(ABC):
    """What `convert` reads. Tensor names are the canonical ones of `families`."""

    path: Path
    spec: ModelSpec
    scales: WeightScales                # folded into what `rows` gives
    family: ModuleType
    tokenizer_json: str
    chat_template: str                  # empty when the checkpoint has none
    files: tuple[Path, ...]             # what was read, for the manifest's source hashes

    @abstractmethod
    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a canonical tensor; raises CheckpointError when it is absent."""

    def rows(self, name: str, start: int = 0, stop: int | None = None) -> NDArray[np.float32]:
        """Rows [start, stop) of a canonical tensor as float32, C-contiguous, scales folded in."""
        rows = self._stored_rows(name, start, stop)
        scale = self.scales.of(name, self.spec.embedding.tied)
        return rows if scale == 1 else rows * np.float32(scale)

    @abstractmethod
    def _stored_rows(self, name: str, start: int, stop: int | None) -> NDArray[np.float32]:
        """The same as the checkpoint has them."""

    @abstractmethod
    def stored_names(self) -> Iterable[str]:
        """All tensors as the checkpoint itself calls them."""

    def check_tensors(self) -> None:
        """Raise CheckpointError for a tensor of another shape, and for a bias nobody would add."""
        shapes = self.family.tensor_shapes(self.spec)
        known = {rename(name) for rename in (self.family.huggingface_name, self.family.gguf_name)
                 for name in shapes}
        for name in self.stored_names():
            if name.endswith('.bias') and name not in known:
                raise CheckpointError(f'{self.path}: tensor {name} is a bias; the '
                                      f'{self.spec.model_type} family here has no such')
        for name, expected in shapes.items():
            if (found := self.shape(name)) != expected:
                raise CheckpointError(f'{self.path}: tensor {name} has shape {found}; '
                                      f'the configuration asks for {expected}')


def open_checkpoint(path: str | Path, ffn: str | Path | None = None) -> Checkpoint:
    """Open a GGUF file or a Hugging Face folder; raises CheckpointError and OSError.

    `ffn`: a file of feed-forward weights that take the place of the checkpoint's own.
    """
    checkpoint = _open(Path(path))
    if ffn is None:
        return checkpoint
    from flash_llm_ros.checkpoint.replaced_ffn import ReplacedFfn
    return ReplacedFfn(checkpoint, Path(ffn))


def _open(path: Path) -> Checkpoint:
    if path.is_dir():
        from flash_llm_ros.checkpoint.huggingface import HuggingFaceCheckpoint
        return HuggingFaceCheckpoint(path)
    if path.is_file():
        from flash_llm_ros.checkpoint.gguf_file import GgufCheckpoint
        return GgufCheckpoint(path)
    raise CheckpointError(f'{path} does not exist; a checkpoint is a Hugging Face folder '
                          'or a .gguf file')
