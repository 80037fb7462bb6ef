"""A system prompt whose keys and values lie on flash, so that no request has to compute them."""

from collections.abc import Callable
from contextlib import suppress
import hashlib
import json
import os
from pathlib import Path
import platform
import sys

from flash_llm_ros.engine.config import EngineConfig
from flash_llm_ros.engine.conversations.kv_snapshot import (
    not_written,
    read_snapshot,
    write_snapshot,
)
from flash_llm_ros.engine.conversations.private_folder import (
    create_private,
    open_private,
    private_folder,
)
from flash_llm_ros.engine.model.model import Model
from flash_llm_ros.onnx_runtime import ort
from flash_llm_ros.store.errors import FlashLlmError
from flash_llm_ros.store.flash_store import MANIFEST, FlashStore

_PREFIX, _SUFFIX = 'flash_llm_', '.kv'
_MOST_FILES = 8         # in a folder: of those that were used longest ago, the rest are removed


class KeptPrompt:
    """The tokens that prompts with one system prompt begin with, and the file with their rows."""

    def __init__(self, of: object, tokens: list[int], folder: Path, settings: str) -> None:
        """`of` says what the tokens are made of."""
        self.of, self.tokens = of, tokens
        self._folder = folder
        self._key = hashlib.sha256(f'{settings}{json.dumps(tokens)}'.encode()).digest()
        self._name = f'{_PREFIX}{self._key.hex()[:32]}{_SUFFIX}'

    @property
    def path(self) -> Path:
        """Where the file is, or will be."""
        return self._folder / self._name

    def begins(self, tokens: list[int]) -> bool:
        """Whether these tokens are a prompt with this system prompt."""
        count = len(self.tokens)
        return 0 < count < len(tokens) and tokens[:count] == self.tokens

    def restore(self, model: Model, log: Callable[[str], None]) -> bool:
        """Fill the KV cache from the file; False where there is none that can be trusted."""
        try:
            with private_folder(self._folder, make=False) as folder, \
                    open_private(folder, self._name) as file:
                read_snapshot(file, str(self.path), self._key,
                              model.attention.rows(len(self.tokens)))
                model.end = len(self.tokens)
                os.utime(file.fileno())
        except FileNotFoundError:
            return False
        except OSError as error:
            log(f'{self.path} is not used: {error.strerror}.')
            return False
        except FlashLlmError as error:
            log(f'{error} It is not used; the system prompt is computed anew.')
            return False
        return True

    def keep(self, model: Model, log: Callable[[str], None]) -> None:
        """Write the file, whole or not at all, from the KV cache."""
        try:
            with private_folder(self._folder) as folder:
                self._write(folder, model)
                with suppress(OSError):     # another process may have removed them meanwhile
                    _remove_oldest(folder)
        except OSError as error:
            log(f'{not_written(self.path, error)} The next start computes the system prompt '
                'anew.')

    def _write(self, folder: int, model: Model) -> None:
        # The name is the content's: what an interrupted write has left is removed.
        part = f'{self._name}.part'
        try:
            with create_private(folder, part) as file:
                write_snapshot(file, self._key, model.attention.rows(len(self.tokens)))
                file.flush()
                os.fsync(file.fileno())
            os.replace(part, self._name, src_dir_fd=folder, dst_dir_fd=folder)
        except BaseException:
            with suppress(OSError):
                os.unlink(part, dir_fd=folder)
            raise


def _remove_oldest(folder: int) -> None:
    with os.scandir(folder) as entries:
        files = sorted((entry.stat(follow_symlinks=False).st_mtime, entry.name)
                       for entry in entries
                       if entry.name.startswith(_PREFIX) and entry.name.endswith(_SUFFIX))
    for _, name in files[:-_MOST_FILES]:
        os.unlink(name, dir_fd=folder)


def settings_of(store: FlashStore, config: EngineConfig, model: Model) -> str:
    """All that the bytes of keys and values follow from, beside the tokens.

    The mode in `config` is resolved.
    """
    core = model.window.core
    code = Path(sys.modules[type(core).__module__].__file__).read_bytes()
    return json.dumps({
        'store': hashlib.sha256(store.content(MANIFEST)).hexdigest(),
        'core': hashlib.sha256(code).hexdigest(), 'kernels': core.kernels,
        'onnxruntime': ort.__version__, 'machine': platform.machine(),
        **config.kv_settings})
