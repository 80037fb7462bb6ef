"""Opens a flash store under a DRAM budget and answers requests, one at a time."""

from collections.abc import Callable
from dataclasses import replace

from flash_llm_ros.engine.config import MOST_THREADS, EngineConfig
from flash_llm_ros.engine.conversations.private_folder import private_folder
from flash_llm_ros.engine.conversations.runs import Runs, Suspended
from flash_llm_ros.engine.memory.process_memory import trim_heap
from flash_llm_ros.engine.memory.window import Window, read_costs
from flash_llm_ros.engine.memory.window_plan import experts_held, plan_window
from flash_llm_ros.engine.model.draft_model import DraftModel
from flash_llm_ros.engine.model.model import Model
from flash_llm_ros.engine.parts import Parts, load_parts
from flash_llm_ros.engine.plan import MemoryPlan
from flash_llm_ros.engine.request.generation import Generation, GenerationRequest
from flash_llm_ros.store.errors import ErrorCode, FlashLlmError
from flash_llm_ros.store.flash_device import FlashDevice
from flash_llm_ros.store.flash_store import FlashStore
from flash_llm_ros.store.geometry import EXPERT_SECTIONS, Geometry

Log = Callable[[str], None]


class Engine:
    """`Engine.open`, `start` requests, `close`. Calls come from one thread at a time."""

    def __init__(self, store: FlashStore, parts: Parts, mode_reason: str, plan: MemoryPlan,
                 window: Window, draft: DraftModel | None, log: Log) -> None:
        """Of parts that are loaded; use `Engine.open`."""
        self.config, self.plan, self.mode_reason = parts.config, plan, mode_reason
        self._store, self._tokenizer = store, parts.text.tokenizer
        self.model = Model(store.manifest.model, parts.attention, parts.feed_forward, window,
                           self.config.prefill_chunk, parts.logits_rows)
        self._draft = draft
        self._runs = Runs(self.config, store, self.model, draft, parts.text, parts.constraints,
                          log)
        self._closed = False
        self._most_threads = MOST_THREADS

    @classmethod
    def open(cls, config: EngineConfig, log: Log = lambda line: None,
             progress: Callable[[], None] = lambda: None) -> 'Engine':
        """Verify, choose the parts, plan, load, plan with what was measured, allocate; seconds.

        `progress` is called in this thread, for every piece of the store that was read.
        Raises FlashLlmError: STORE_*, BUDGET_TOO_SMALL, INVALID_PARAMETER, READ_FAILED,
        CHECKSUM_MISMATCH.
        """
        store = FlashStore.open(config.store, progress)
        config = _fitting(config, store)
        if config.verify:
            log(f'verifying {store.path}')
            store.verify_resident()
        costs = read_costs(store, config, log)
        parts, mode_reason, plan = load_parts(config, store, costs, log)
        log(f'filling the window of {plan.window_bytes / 1e6:.1f} MB')
        try:
            parts.attention.allocate()
            window = Window(store, config, plan_window(store.manifest.geometry, plan.slots,
                                                       parts.feed_forward.grouped), costs)
            parts.attention.attach(window)
            parts.feed_forward.attach(window)
            draft = None if parts.draft is None else parts.draft.allocate(
                parts.draft.costs(window.plan, costs))
        except (MemoryError, OSError):
            raise FlashLlmError(ErrorCode.INVALID_PARAMETER,
                                f'dram_budget is {config.dram_budget} bytes, more than this '
                                'system gives; it must fit in free memory.') from None
        log(f'reading with {window.reader}')
        for line in [*_warnings(window, config), *_useless_window(store, window, plan)]:
            log(line)
        return cls(store, parts, mode_reason, plan, window, draft, log)

    @property
    def mode(self) -> str:
        """What mode auto has come to: exact or gated; `mode_reason` says why."""
        return self.config.mode

    @property
    def model_name(self) -> str:
        return self.model.spec.name

    @property
    def geometry(self) -> Geometry:
        """Where every neuron lies in the store."""
        return self._store.manifest.geometry

    @property
    def reader(self) -> str:
        """How flash is read: by which reader, and how many reads at once."""
        return self.model.window.reader

    @property
    def model_bytes(self) -> int:
        """Bytes of the flash store, what would have to be in DRAM without it."""
        return self._store.bytes

    @property
    def sessions(self) -> int:
        """Conversations that are kept; may be read from any thread."""
        return len(self._runs.sessions)

    def check(self, request: GenerationRequest) -> None:
        """Raise what `start` would raise without a look at the model; from any thread, at once.

        So what is too long for the context need not wait. Raises FlashLlmError: EMPTY_PROMPT,
        INVALID_TEXT, PROMPT_TOO_LONG, INVALID_REQUEST.
        """
        self._runs.check(request)

    def start(self, request: GenerationRequest) -> Generation:
        """Check and tokenise a request; iterate over what is returned to run it.

        A generation that is still running is given up. With a `session_id`, what the session has
        in the KV cache is not computed again; the session goes on with the answer once that has
        come to its end, and is as before where it has not. Raises FlashLlmError: EMPTY_PROMPT,
        INVALID_TEXT, PROMPT_TOO_LONG, INVALID_REQUEST, INVALID_CONSTRAINT, TOO_MANY_SESSIONS;
        RuntimeError once the engine is closed.
        """
        if self._closed:
            raise RuntimeError('the engine is closed')
        return self._runs.start(request)

    def keep_system_prompt(self, system_prompt: str) -> None:
        """Bring a system prompt's keys and values from flash, or compute and keep them; seconds.

        Requests with `keep_system_prompt` do so by themselves; this saves the first one the time.
        Raises FlashLlmError: INVALID_TEXT, PROMPT_TOO_LONG, READ_FAILED, CHECKSUM_MISMATCH.
        """
        self._runs.keep_system_prompt(system_prompt)

    def suspend(self) -> Suspended:
        """Put what runs aside, between two of its pieces, so that another request can be started.

        Keep its iterator: after `resume` it goes on to the same bytes. Until then its session
        takes no other request. Raises FlashLlmError(READ_FAILED) where the state cannot be
        written to flash; it goes on running.
        """
        return self._runs.suspend()

    def resume(self, suspended: Suspended) -> None:
        """Let it run again; its iterator goes on. What runs meanwhile is given up.

        Raises FlashLlmError(READ_FAILED or CHECKSUM_MISMATCH) where its state is lost.
        """
        self._runs.resume(suspended)

    def discard(self, suspended: Suspended) -> None:
        """Forget what will not be resumed."""
        self._runs.discard(suspended)

    def reset_session(self, session_id: str) -> int:
        """Forget a session, or all for ''; returns how many. May be called from any thread.

        Raises FlashLlmError(NO_SUCH_SESSION).
        """
        return self._runs.sessions.reset(session_id)

    @property
    def threads(self) -> int:
        """How many threads compute in the core."""
        return min(self._most_threads, self.config.threads)

    def limit_threads(self, most: int) -> None:
        """Compute with at most so many of the core's threads; results stay the same bytes.

        ONNX Runtime, where it computes attention, keeps the number it was opened with.
        """
        if most != self._most_threads:
            self.model.window.core.limit_threads(most)
            if self._draft is not None:
                self._draft.limit_threads(most)
            self._most_threads = most

    def tokenize(self, text: str) -> list[int]:
        """May be called from any thread, also while a request is computed."""
        return self._tokenizer.encode(text)

    def stats(self) -> dict[str, int]:
        """Counters since opening."""
        return {**self.model.window.core.stats(),
                'active_neurons': self.model.feed_forward.active_neurons,
                'total_neurons': self.model.feed_forward.total_neurons}

    def flash_counters(self) -> dict[str, int]:
        """Counters of the core as of now; from any thread, also while a request is computed."""
        return self.model.window.core.stats()

    def close(self) -> None:
        """Free everything; idempotent."""
        if not self._closed:
            self._closed = True
            self._runs.close()
            self.model.window.close()
            if self._draft is not None:
                self._draft.close()
            del self.model.attention, self.model.feed_forward
            trim_heap()


def _fitting(config: EngineConfig, store: FlashStore) -> EngineConfig:
    """The default context is no longer than what the model was trained for."""
    most = store.manifest.model.max_context
    if config.context_length == EngineConfig.context_length > most:
        return replace(config, context_length=most)
    if config.context_length > most:
        raise FlashLlmError(ErrorCode.INVALID_PARAMETER,
                            f'context_length is {config.context_length}; the model was trained '
                            f'for at most {most} tokens.')
    return config


def _warnings(window: Window, config: EngineConfig) -> list[str]:
    lines = []
    if config.direct_io and not window.core.direct:
        lines.append('the file system refuses direct I/O: reads go through the page cache')
    if config.lock_memory and not window.core.locked:
        lines.append('the window could not be locked in memory (RLIMIT_MEMLOCK)')
    folder = config.kv_folder
    try:
        with private_folder(folder, make=False):
            pass
    except FileNotFoundError:
        pass
    except OSError as error:
        lines.append(f'session_folder {folder} will not be used: {error.strerror}')
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    file_system = FlashDevice.of(there).file_system
    if file_system in ('tmpfs', 'ramfs'):
        lines.append(f'session_folder {folder} lies in memory ({file_system}): what is kept there '
                     'takes DRAM beside dram_budget')
    return lines


def _useless_window(store: FlashStore, window: Window, plan: MemoryPlan) -> list[str]:
    """Of a window with less room than one token's experts take: nothing stays for the next."""
    geometry, block = store.manifest.geometry, store.manifest.model.feed_forward
    held, of = experts_held(geometry, window.plan)
    sections = geometry.all_layers(EXPERT_SECTIONS[0])
    if block.experts is None or held >= (used := len(sections) * block.experts.active):
        return []
    more = (used - held) * sections[0].stride * geometry.group_bytes
    return [f'the window holds {held} of {of} experts and a token uses {used}: what it reads is '
            f'gone before the next token; with a dram_budget of {(plan.budget + more) / 1e6:.0f} '
            'MB it would stay']
