"""Opens a flash store under a DRAM budget and answers requests, one at a time."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from flash_llm_ros.engine.aggressive_mode import AggressiveMode
from flash_llm_ros.engine.config import MOST_THREADS, EngineConfig
from flash_llm_ros.engine.conversations.runs import Runs, Suspended
from flash_llm_ros.engine.memory.core import core_scratch_bytes
from flash_llm_ros.engine.memory.process_memory import (
    release_code,
    resident_bytes,
    return_large_blocks,
    trim_heap,
)
from flash_llm_ros.engine.memory.window import Window
from flash_llm_ros.engine.memory.window_plan import least_slots, most_slots, plan_window
from flash_llm_ros.engine.model.attention import AttentionStack, kv_cache_bytes
from flash_llm_ros.engine.model.feed_forward import (
    BundledFeedForward,
    DenseFeedForward,
    FeedForward,
    SplitFeedForward,
    up_biases,
)
from flash_llm_ros.engine.model.model import Model
from flash_llm_ros.engine.model.predictors import PredictorStack, activation_limits, down_norms
from flash_llm_ros.engine.plan import MemoryPlan, PlanRow, plan_memory
from flash_llm_ros.engine.request.constrained_decoding import (
    WORK_BYTES,
    ConstrainedDecoding,
    planned_bytes,
)
from flash_llm_ros.engine.request.generation import Generation, GenerationRequest
from flash_llm_ros.engine.sparse_mode import (
    chosen_sparsity,
    learned_corrections,
    read_costs,
    reads_scattered,
)
from flash_llm_ros.engine.tail_correction import (
    TailCorrection,
    correction_bytes,
    load_corrections,
)
from flash_llm_ros.engine.text.chat_template import ChatTemplate
from flash_llm_ros.engine.text.tokenizer import TextTokenizer, load_tokenizer
from flash_llm_ros.engine.token_clock import TokenClock
from flash_llm_ros.store.errors import ErrorCode, FlashLlmError
from flash_llm_ros.store.flash_device import FlashDevice
from flash_llm_ros.store.flash_store import (
    CHAT_TEMPLATE,
    RESIDENT,
    TOKENIZER,
    TOKENIZER_TABLES,
    FlashStore,
)
from flash_llm_ros.store.geometry import Geometry
from flash_llm_ros.store.manifest import Manifest

# Allocator, Python and code pages that tokens touch first, beyond the buffers planned below.
_SLACK = 7_000_000
_SESSION_BYTES = 4096       # of a conversation that is kept, beside its tokens


class Engine:
    """`Engine.open`, `start` requests, `close`. Calls come from one thread at a time."""

    def __init__(self, config: EngineConfig, store: FlashStore, plan: MemoryPlan, model: Model,
                 tokenizer: TextTokenizer, template: ChatTemplate,
                 log: Callable[[str], None],
                 constrained: ConstrainedDecoding | None = None) -> None:
        self.config, self.plan, self.model = config, plan, model
        self._store, self._tokenizer = store, tokenizer
        self._runs = Runs(config, store, model, tokenizer, template, log, constrained)
        self._closed = False
        self._most_threads = MOST_THREADS

    @classmethod
    def open(cls, config: EngineConfig, log: Callable[[str], None] = lambda line: None) -> 'Engine':
        """Verify, load, plan and allocate; takes seconds.

        Raises FlashLlmError: STORE_*, BUDGET_TOO_SMALL, INVALID_PARAMETER, READ_FAILED,
        CHECKSUM_MISMATCH.
        """
        store = FlashStore.open(config.store)
        manifest = store.manifest
        _check_against(config, manifest)
        if config.verify:
            log(f'verifying {store.path}')
            store.verify_resident()
        sparsity = chosen_sparsity(config, manifest)
        aggressive = (AggressiveMode(store, config.neuron_share) if config.mode == 'aggressive'
                      else None)
        geometry = manifest.geometry if aggressive is None else aggressive.geometry
        costs = read_costs(store, config, log)
        scattered = reads_scattered(config, manifest, sparsity, costs)
        shared_out_for = ('aggressive' if aggressive else 'sparse' if scattered else 'exact')
        sizes = (geometry.group_bytes, least_slots(geometry, shared_out_for),
                 most_slots(geometry))
        estimate = _resident_estimate(store, scattered)
        place = learned_corrections(config, store, sparsity)
        if place:
            log(f'mode sparse adds corrections that were learned for sparsity {sparsity:g}')
            estimate.append(PlanRow('corrections', correction_bytes(store, place), ''))
        if aggressive:
            log(aggressive.describe())
            estimate += aggressive.estimate()
        buffers = _buffers(config, store) + (aggressive.buffers() if aggressive else [])
        vocabulary = manifest.model.embedding.vocab_size
        rows = [_structured_row(planned_bytes(vocabulary))] * config.structured
        plan_memory(config.dram_budget, [*estimate, *rows, *buffers], *sizes)

        return_large_blocks()
        bare = resident_bytes()
        log('loading the resident weights')
        tokenizer = load_tokenizer(store)
        trim_heap()
        template = _chat_template(store, tokenizer)
        attention = AttentionStack(store, config.threads)
        predictors = (PredictorStack(store, config.threads, sparsity,
                                     scores=config.token_deadline_ms > 0)
                      if scattered else None)
        biases = up_biases(store)
        corrections = load_corrections(store, place) if place else None
        norms = (down_norms(store) if config.mode == 'sparse' and manifest.layout == 'split'
                 else [])
        if aggressive:
            aggressive.load(config.threads)
        trim_heap()
        release_code(('onnxruntime', 'tokenizers'))
        attention.warm()
        tokenizer.encode('warm')
        loaded = max(resident_bytes() - bare, sum(row.bytes for row in estimate))
        resident = PlanRow('resident weights', loaded, 'attention, predictors, tokenizer and '
                           'ONNX Runtime, as measured')
        constrained, rows = _constrained_decoding(config, manifest, tokenizer)
        plan = plan_memory(config.dram_budget, [resident, *rows, *buffers], *sizes)

        log(f'filling the window of {plan.window_bytes / 1e6:.1f} MB')
        slots = plan_window(geometry, shared_out_for,
                            plan.window_bytes // geometry.group_bytes)
        try:
            attention.allocate(config.context_length, config.prefill_chunk)
            window = Window(store, config, slots, costs, geometry)
        except (MemoryError, OSError):
            raise FlashLlmError(ErrorCode.INVALID_PARAMETER,
                                f'dram_budget is {config.dram_budget} bytes, more than this '
                                'system gives; it must fit in free memory.') from None
        log(f'reading with {window.reader}')
        for line in _warnings(window, config):
            log(line)
        clock = (TokenClock(config.token_deadline_ms / 1000, manifest.model.layers)
                 if config.token_deadline_ms else None)
        feed_forward = (aggressive.feed_forward(window, config.prefill_chunk) if aggressive else
                        _feed_forward(config, manifest, window, predictors, sparsity, norms,
                                      biases, clock, corrections))
        model = Model(manifest.model, attention, feed_forward, window, config.prefill_chunk, clock,
                      1 + _lookup_tokens(config),
                      aggressive.head_shortlist if aggressive else None)
        return cls(config, store, plan, model, tokenizer, template, log, constrained)

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

        ONNX Runtime, which computes attention, keeps the number it was opened with.
        """
        if most != self._most_threads:
            self.model.window.core.limit_threads(most)
            self._most_threads = most

    def tokenize(self, text: str) -> list[int]:
        return self._tokenizer.encode(text)

    def stats(self) -> dict[str, int]:
        """Counters since opening."""
        return {**self.model.window.core.stats(),
                'active_neurons': self.model.feed_forward.active_neurons,
                'total_neurons': self.model.feed_forward.total_neurons,
                'deadlines_missed': self.model.deadlines_missed}

    def flash_counters(self) -> dict[str, int]:
        """Counters of the core as of now; from any thread, also while a request is computed."""
        return self.model.window.core.stats()

    def close(self) -> None:
        """Free everything; idempotent."""
        if not self._closed:
            self._closed = True
            self._runs.close()
            self.model.window.close()
            del self.model.attention, self.model.feed_forward
            trim_heap()


def _check_against(config: EngineConfig, manifest: Manifest) -> None:
    if config.context_length > manifest.model.max_context:
        raise FlashLlmError(ErrorCode.INVALID_PARAMETER,
                            f'context_length is {config.context_length}; the model was trained '
                            f'for at most {manifest.model.max_context} tokens.')
    if config.mode == 'sparse' and manifest.calibration is None:
        raise FlashLlmError(ErrorCode.INVALID_PARAMETER,
                            'mode is sparse, but the store was converted without calibration; '
                            'use mode exact or convert again.')


def _resident_estimate(store: FlashStore, predictors: bool) -> list[PlanRow]:
    """The least that loading will take; what it does take is measured."""
    files = store.manifest.files
    rows = [PlanRow('attention weights', files[RESIDENT]['bytes'], ''),
            PlanRow('tokenizer', files[TOKENIZER_TABLES]['bytes'] if TOKENIZER_TABLES in files
                    else 4 * files[TOKENIZER]['bytes'], '')]
    if predictors:
        rows.append(PlanRow('predictors', files[store.predictor_weights]['bytes'], ''))
    return rows


def _buffers(config: EngineConfig, store: FlashStore) -> list[PlanRow]:
    spec, chunk, context = store.manifest.model, config.prefill_chunk, config.context_length
    # hidden x 2, FFN input, activations; logits
    floats = chunk * (3 * spec.hidden_size + spec.feed_forward.size)
    floats += spec.embedding.vocab_size * (1 + _lookup_tokens(config))
    # A layer's normed, attended, projected, qkv twice for the cast, scores; or, when it is done,
    # what sampling takes: scores, order, weights in 8 bytes each, and a mask
    floats += max(chunk * (3 * spec.hidden_size + 2 * spec.attention.qkv_width
                           + spec.attention.heads * context),
                  spec.embedding.vocab_size * 7)
    core = core_scratch_bytes(store.manifest.geometry, config.threads, chunk)
    sessions = ([PlanRow('sessions', config.max_sessions * (4 * context + _SESSION_BYTES),
                         'their tokens; keys and values lie on flash')]
                if config.max_sessions else [])
    return [PlanRow('KV cache', kv_cache_bytes(store, context),
                    f'{context} tokens in {store.manifest.kv_cache}'),
            PlanRow('scratch', 4 * floats + core + _SLACK, f'{chunk} prompt tokens at once'),
            *sessions]


def _constrained_decoding(
    config: EngineConfig, manifest: Manifest, tokenizer: TextTokenizer,
) -> tuple[ConstrainedDecoding | None, list[PlanRow]]:
    """What constraints need where there may be any, and its row of the plan."""
    if not config.structured:
        return None, []
    spec, before = manifest.model, resident_bytes()
    constrained = ConstrainedDecoding(tokenizer.vocabulary, spec.embedding.vocab_size,
                                      spec.end_tokens)
    constrained.warm()
    trim_heap()
    taken = max(resident_bytes() - before, planned_bytes(spec.embedding.vocab_size))
    return constrained, [_structured_row(taken)]


def _structured_row(library: int) -> PlanRow:
    return PlanRow('structured answers', library + WORK_BYTES,
                   f'llguidance and its tokens, and {WORK_BYTES / 1e6:g} MB for one constraint')


def _lookup_tokens(config: EngineConfig) -> int:
    """Sparse mode computes its tokens one by one: each has an active set of its own."""
    return 0 if config.mode == 'sparse' else config.lookup_tokens


def _chat_template(store: FlashStore, tokenizer: TextTokenizer) -> ChatTemplate:
    spec = store.manifest.model
    end = spec.end_tokens[0] if spec.end_tokens else None
    return ChatTemplate(store.text(CHAT_TEMPLATE), tokenizer.text_of(spec.begin_token),
                        tokenizer.text_of(end))


def _feed_forward(config: EngineConfig, manifest: Manifest, window: Window,
                  predictors: PredictorStack | None, sparsity: float,
                  norms: list[NDArray[np.float32]], biases: list[NDArray[np.float32] | None],
                  clock: TokenClock | None,
                  corrections: list[TailCorrection] | None) -> FeedForward:
    spec = manifest.model
    dense = DenseFeedForward(window, spec, manifest.layout, config.prefill_chunk, biases)
    if config.mode == 'exact':
        return dense
    name = 'bundle' if manifest.layout == 'bundled' else 'down'
    together = (manifest.geometry.section(name, 0).bundles_per_group if config.whole_groups else 1)
    if manifest.layout == 'bundled':
        return BundledFeedForward(dense, window, predictors, spec, clock, together,
                                  config.read_ahead)
    limits = activation_limits(manifest.calibration, sparsity, norms)
    return SplitFeedForward(dense, window, predictors, spec.feed_forward.activation, limits, norms,
                            clock, together, corrections)


def _warnings(window: Window, config: EngineConfig) -> list[str]:
    lines = []
    if config.direct_io and not window.core.direct:
        lines.append('the file system refuses direct I/O: reads go through the page cache')
    if config.lock_memory and not window.core.locked:
        lines.append('the window could not be locked in memory (RLIMIT_MEMLOCK)')
    folder = config.kv_folder
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    file_system = FlashDevice.of(there).file_system
    if file_system in ('tmpfs', 'ramfs'):
        lines.append(f'session_folder {folder} lies in memory ({file_system}): what is kept there '
                     'takes DRAM beside dram_budget')
    return lines
