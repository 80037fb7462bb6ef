"""Open a checkpoint of whatever kind it is."""

from pathlib import Path

from flash_llm_ros.checkpoint.checkpoint import Checkpoint
from flash_llm_ros.checkpoint.errors import CheckpointError
from flash_llm_ros.checkpoint.foreign import strange_file, strange_folder
from flash_llm_ros.checkpoint.gguf_file import GgufCheckpoint
from flash_llm_ros.checkpoint.huggingface import HuggingFaceCheckpoint
from flash_llm_ros.checkpoint.replaced_ffn import ReplacedFfn


def open_checkpoint(path: str | Path, ffn: str | Path | None = None) -> Checkpoint:
    """Open a GGUF file or a Hugging Face folder; raises CheckpointError and OSError.

    `ffn`: a file of feed-forward weights that take the place of the checkpoint's own.
    """
    checkpoint = _opened(Path(path))
    return checkpoint if ffn is None else ReplacedFfn(checkpoint, Path(ffn))


def _opened(path: Path) -> Checkpoint:
    if path.is_dir():
        if (path / 'config.json').is_file():
            return HuggingFaceCheckpoint(path)
        raise CheckpointError(f'{path} {strange_folder(path)}')
    if not path.exists():
        raise CheckpointError(f'{path} does not exist; a checkpoint is a Hugging Face folder or a '
                              '.gguf file')
    if (sentence := strange_file(path)) is not None:
        raise CheckpointError(f'{path} {sentence}')
    return GgufCheckpoint(path)
