"""What the engine is opened with."""

from dataclasses import dataclass
import os
from pathlib import Path
import tempfile

from flash_llm_ros.engine.down_reads import DOWN_READS
from flash_llm_ros.engine.numpy_policies import DEFAULT_POLICY, POLICY_FORM, make_policy
from flash_llm_ros.store.errors import ErrorCode, FlashLlmError

MODES = ('exact', 'sparse', 'aggressive')
READERS = ('auto', 'io_uring', 'threads')
MOST_READS_IN_FLIGHT = 256      # of the native core
MOST_THREADS = 256
MOST_SESSIONS = 1000
MOST_DEADLINE_MS = 1_000_000


@dataclass(frozen=True)
class EngineConfig:
    """Validated on creation; raises FlashLlmError(INVALID_PARAMETER)."""

    store: Path
    dram_budget: int                # bytes: resident weights, KV cache, scratch and window
    mode: str = 'exact'
    context_length: int = 512       # tokens of prompt and answer
    prefill_chunk: int = 64         # prompt tokens computed at once
    sparsity: float | None = None   # share of down columns left out; None: as calibrated
    neuron_share: float | None = None   # of mode aggressive; None: as prepared
    lookup_tokens: int = 4          # not sparse: guessed tokens computed with one; 0: none
    structured: bool = False        # requests may have constraints: llguidance, and its memory
    force_batches: bool = True      # tokens that a constraint forces share a pass over the flash
    whole_groups: bool = False      # sparse mode uses what is read along with active neurons
    token_deadline_ms: float = 0.0  # sparse mode leaves out what is not read in time; 0: nothing
    threads: int = 1                # that compute: of ONNX Runtime, and in turn of the core
    reader: str = 'auto'            # io_uring, threads; auto: the former where it is to be had
    reads_in_flight: int = 32
    direct_io: bool = True
    lock_memory: bool = True
    verify: bool = True             # compare file hashes on opening
    window_policy: str = DEFAULT_POLICY     # which cached groups yield, see doc/window.md
    down_reads: str = 'auto'        # of sparse mode; auto: stream or scattered, what is faster
    read_ahead: bool = False        # sparse mode of ReLU models: next layer's bundles, as foreseen
    core: str = 'native'            # or numpy, the slow reference
    max_sessions: int = 4           # conversations kept between requests
    session_folder: Path | None = None      # for parts of the KV cache; None: the user's cache

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            _refuse('mode', self.mode, f'one of {", ".join(MODES)}')
        for name, least in (('dram_budget', 1), ('context_length', 2), ('prefill_chunk', 1),
                            ('lookup_tokens', 0), ('threads', 1), ('reads_in_flight', 1),
                            ('max_sessions', 0)):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                _refuse(name, value, f'an integer of at least {least}')
        sparsity = self.sparsity
        if sparsity is not None and not (isinstance(sparsity, (int, float)) and 0 <= sparsity < 1):
            _refuse('sparsity', sparsity, 'a number in [0, 1)')
        share = self.neuron_share
        if share is not None and not (isinstance(share, (int, float)) and 0 < share <= 1):
            _refuse('neuron_share', share, 'a number above 0, at most 1')
        try:
            make_policy(self.window_policy, 1)
        except (AttributeError, ValueError):
            _refuse('window_policy', self.window_policy, POLICY_FORM)
        if not (isinstance(self.token_deadline_ms, (int, float))
                and 0 <= self.token_deadline_ms <= MOST_DEADLINE_MS):
            _refuse('token_deadline_ms', self.token_deadline_ms,
                    f'a number from 0 to {MOST_DEADLINE_MS}')
        if self.token_deadline_ms and self.mode != 'sparse':
            _refuse('token_deadline_ms', self.token_deadline_ms,
                    f'0 in mode {self.mode}, which decides nothing by time; mode sparse may')
        if self.token_deadline_ms and self.down_reads == 'stream':
            _refuse('down_reads', self.down_reads,
                    'auto or scattered where token_deadline_ms is not 0')
        if self.threads > MOST_THREADS:
            _refuse('threads', self.threads, f'at most {MOST_THREADS}')
        if self.reads_in_flight > MOST_READS_IN_FLIGHT:
            _refuse('reads_in_flight', self.reads_in_flight, f'at most {MOST_READS_IN_FLIGHT}')
        if self.max_sessions > MOST_SESSIONS:
            _refuse('max_sessions', self.max_sessions, f'at most {MOST_SESSIONS}')
        if self.reader not in READERS:
            _refuse('reader', self.reader, f'one of {", ".join(READERS)}')
        if self.down_reads not in DOWN_READS:
            _refuse('down_reads', self.down_reads, f'one of {", ".join(DOWN_READS)}')
        if self.core not in ('native', 'numpy'):
            _refuse('core', self.core, 'native or numpy')

    @property
    def kv_folder(self) -> Path:
        """Where parts of the KV cache are kept on flash."""
        if self.session_folder is not None:
            return self.session_folder
        try:
            caches = Path(os.environ.get('XDG_CACHE_HOME') or '~/.cache').expanduser()
        except RuntimeError:        # a user without a home
            caches = Path(tempfile.gettempdir())
        return caches / 'flash_llm'


def _refuse(name: str, value: object, right: str) -> None:
    raise FlashLlmError(ErrorCode.INVALID_PARAMETER, f'{name} is {value!r}; it must be {right}.')
