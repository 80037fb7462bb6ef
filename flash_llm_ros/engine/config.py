"""What the engine is opened with."""

from collections.abc import Callable
from dataclasses import dataclass, field, fields
import os
from pathlib import Path
import tempfile
import time
from typing import Any

from flash_llm_ros.store.errors import ErrorCode, FlashLlmError

MODES = ('auto', 'exact', 'gated')
KV_CACHES = ('int8', 'int16')
READERS = ('auto', 'io_uring', 'threads')
MOST_READS_IN_FLIGHT = 256      # of the native core
MOST_THREADS = 256
MOST_SESSIONS = 1000
_LEAST = {'dram_budget': 1, 'context_length': 2, 'prefill_chunk': 0, 'lookup_tokens': 0,
          'threads': 1, 'reads_in_flight': 1, 'max_sessions': 0}
_MOST = {'threads': MOST_THREADS, 'reads_in_flight': MOST_READS_IN_FLIGHT,
         'max_sessions': MOST_SESSIONS}


# Whether the bytes of keys and values follow from a field; every one of them says it.
_KV, _NO_KV = {'kv': True}, {'kv': False}


@dataclass(frozen=True)
class EngineConfig:
    """Validated on creation; raises FlashLlmError(INVALID_PARAMETER)."""

    # Where the store lies; what it is its manifest says.
    store: Path = field(metadata=_NO_KV)
    # Bytes of all that is loaded, of buffers and of the window.
    dram_budget: int = field(metadata=_NO_KV)
    mode: str = field(default='auto', metadata=_KV)
    # Tokens of prompt and answer.
    context_length: int = field(default=2048, metadata=_KV)
    # Of keys and values, where the core computes attention.
    kv_cache: str = field(default='int8', metadata=_KV)
    # Prompt tokens computed at once; 0: as many as fit model, budget and device.
    prefill_chunk: int = field(default=0, metadata=_KV)
    # Guessed tokens that are computed with one, at most, in mode exact.
    lookup_tokens: int = field(default=4, metadata=_NO_KV)
    # A store of a small model with the same tokenizer, in DRAM, that guesses tokens; None: none.
    draft_store: Path | None = field(default=None, metadata=_NO_KV)
    # Requests may have constraints: llguidance, and its memory.
    structured: bool = field(default=False, metadata=_NO_KV)
    # That compute: ONNX Runtime's, and in turn the core's.
    threads: int = field(default=1, metadata=_KV)
    # io_uring or threads; auto: the former where it is to be had.
    reader: str = field(default='auto', metadata=_NO_KV)
    reads_in_flight: int = field(default=32, metadata=_NO_KV)
    direct_io: bool = field(default=True, metadata=_NO_KV)
    lock_memory: bool = field(default=True, metadata=_NO_KV)
    # Compare file hashes on opening.
    verify: bool = field(default=True, metadata=_NO_KV)
    # Conversations kept between requests.
    max_sessions: int = field(default=4, metadata=_NO_KV)
    # Seconds since 1970, for chat templates that ask for the date.
    clock: Callable[[], float] = field(default=time.time, metadata=_NO_KV)
    # For parts of the KV cache; None: the user's cache.
    session_folder: Path | None = field(default=None, metadata=_NO_KV)

    def __post_init__(self) -> None:
        for name, known in (('mode', MODES), ('kv_cache', KV_CACHES),
                            ('reader', READERS)):
            if (value := getattr(self, name)) not in known:
                _refuse(name, value, f'one of {", ".join(known)}')
        for name, least in _LEAST.items():
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                _refuse(name, value, f'an integer of at least {least}')
        for name, most in _MOST.items():
            if (value := getattr(self, name)) > most:
                _refuse(name, value, f'at most {most}')

    @property
    def kv_settings(self) -> dict[str, Any]:
        """The fields that the bytes of keys and values follow from."""
        return {each.name: getattr(self, each.name) for each in fields(self)
                if each.metadata['kv']}

    @property
    def kv_folder(self) -> Path:
        """Where parts of the KV cache are kept on flash."""
        if self.session_folder is not None:
            return self.session_folder
        try:
            caches = Path(os.environ.get('XDG_CACHE_HOME') or '~/.cache').expanduser()
        except RuntimeError:        # a user without a home, and a folder that others see
            return Path(tempfile.gettempdir(), f'flash_llm-{os.geteuid()}')
        return caches / 'flash_llm'


def _refuse(name: str, value: object, right: str) -> None:
    raise FlashLlmError(ErrorCode.INVALID_PARAMETER, f'{name} is {value!r}; it must be {right}.')
