"""The parts of an engine: chosen for a store and its settings, then planned and loaded."""

from collections.abc import Callable
from dataclasses import replace

from flash_llm_ros.engine.config import EngineConfig
from flash_llm_ros.engine.conversations.sessions import SessionsPart
from flash_llm_ros.engine.memory.footprint import Footprint
from flash_llm_ros.engine.memory.process_memory import (
    release_code,
    return_large_blocks,
    trim_heap,
)
from flash_llm_ros.engine.memory.scratch import Scratch
from flash_llm_ros.engine.memory.window_plan import plan_window, window_size
from flash_llm_ros.engine.mode import Choice, check_mode, ranked_modes
from flash_llm_ros.engine.model.attention import attention_of
from flash_llm_ros.engine.model.draft_model import MOST_DRAFTED, USUAL_SHARE, DraftPart
from flash_llm_ros.engine.model.feed_forward.block import FeedForwardBlock
from flash_llm_ros.engine.model.feed_forward.dense import DenseFeedForward
from flash_llm_ros.engine.model.feed_forward.experts import ExpertFeedForward
from flash_llm_ros.engine.model.feed_forward.gated import GatedFeedForward
from flash_llm_ros.engine.plan import MemoryPlan, Part, PlanRow, plan_memory
from flash_llm_ros.engine.prompt_chunk import chosen_chunk
from flash_llm_ros.engine.request.constrained_decoding import ConstraintsPart
from flash_llm_ros.engine.text.text_part import TextPart
from flash_llm_ros.store.device_profile import ReadCosts
from flash_llm_ros.store.errors import ErrorCode, FlashLlmError
from flash_llm_ros.store.flash_store import FlashStore
from flash_llm_ros.store.manifest import Manifest


class Parts:
    """All that takes DRAM in an engine beside the window; the mode in `config` is resolved."""

    def __init__(self, config: EngineConfig, store: FlashStore,
                 feed_forward: FeedForwardBlock) -> None:
        manifest, context, chunk = store.manifest, config.context_length, config.prefill_chunk
        self.config, self.feed_forward = replace(config, mode=feed_forward.mode), feed_forward
        self.draft = None if config.draft_store is None else DraftPart(config, store)
        guesses = max(config.lookup_tokens, 0 if self.draft is None else MOST_DRAFTED)
        self.logits_rows = 1 + (0 if feed_forward.one_by_one else guesses)
        self.text = TextPart(store, config.clock)
        self.attention = attention_of(store, config, context)
        self.constraints = (ConstraintsPart(manifest.model, self.text) if config.structured
                            else None)
        self._all: list[Part] = [
            self.text, self.attention, feed_forward,
            *([] if self.draft is None else [self.draft]),
            *([] if self.constraints is None else [self.constraints]),
            SessionsPart(config.max_sessions, context),
            Scratch(manifest, context, chunk, config.threads, self.logits_rows)]
        self._window = window_size(manifest.geometry, feed_forward.grouped)

    @property
    def slots(self) -> int:
        """About how many the window will have; 0 where the budget is too small."""
        rows = [*self._estimate(), *self._buffers()]
        return self._window.slots_in(self.config.dram_budget - sum(row.bytes for row in rows))

    def plan(self, loaded: PlanRow | None = None) -> MemoryPlan:
        """The split of the budget with what loading took; None: with the least it takes.

        Raises FlashLlmError(BUDGET_TOO_SMALL).
        """
        rows = self._estimate() if loaded is None else [loaded]
        return plan_memory(self.config.dram_budget, [*rows, *self._buffers()], self._window)

    def load(self) -> PlanRow:
        """Load them one after the other; returns what they took together."""
        return_large_blocks()
        trim_heap()
        footprint, least = Footprint(), self._estimate()
        try:
            for part in self._all:
                part.load()
                trim_heap()
            release_code(('onnxruntime', 'tokenizers'))
            for part in self._all:
                part.warm()
            trim_heap()
        finally:
            taken = footprint.measured(sum(row.bytes for row in least))
        names = ', '.join(row.name for row in least)
        return PlanRow('resident weights', taken, f'{names} and their libraries, as measured')

    def _estimate(self) -> list[PlanRow]:
        return [row for part in self._all for row in part.estimate()]

    def _buffers(self) -> list[PlanRow]:
        return [row for part in self._all for row in part.buffers()]


def block_kinds(manifest: Manifest) -> list[type[FeedForwardBlock]]:
    """What computes the feed-forward blocks of a store, one for each of its modes."""
    if manifest.model.feed_forward.experts is not None:
        return [ExpertFeedForward]
    return [DenseFeedForward, *([] if manifest.calibration is None else [GatedFeedForward])]


def mode_choices(config: EngineConfig, store: FlashStore, costs: ReadCosts | None
                 ) -> list[tuple[Choice, Parts]]:
    """What is tried, in this order, while loading takes more than the budget; nothing is loaded.

    Raises FlashLlmError(INVALID_PARAMETER).
    """
    manifest = store.manifest
    check_mode(config.mode, manifest)
    config = _with_chunk(config, store, costs)
    chunk = config.prefill_chunk
    if config.draft_store is not None:
        return _checking_drafts(config, store, costs)
    kinds = {kind.mode: Parts(config, store, kind(store, chunk)) for kind in block_kinds(manifest)}
    slots = {mode: parts.slots for mode, parts in kinds.items()}
    return [(choice, kinds[choice.mode])
            for choice in ranked_modes(config.mode, manifest, slots, costs)]


def _with_chunk(config: EngineConfig, store: FlashStore, costs: ReadCosts | None
                ) -> EngineConfig:
    if config.prefill_chunk:
        return config
    kind = block_kinds(store.manifest)[0]

    def slots_of(chunk: int) -> int:
        return Parts(replace(config, prefill_chunk=chunk), store, kind(store, chunk)).slots

    return replace(config, prefill_chunk=chosen_chunk(store.manifest, kind.grouped, slots_of, costs,
                                                      config.context_length))


def _checking_drafts(config: EngineConfig, store: FlashStore, costs: ReadCosts | None
                     ) -> list[tuple[Choice, Parts]]:
    """The mode in which tokens share a pass, with the draft model where it is worth its memory."""
    kind = block_kinds(store.manifest)[0]
    if kind.one_by_one or config.mode not in ('auto', kind.mode):
        raise FlashLlmError(
            ErrorCode.INVALID_PARAMETER,
            f'draft_store is {config.draft_store}, but '
            + ('every token of this model has experts of its own to read' if kind.one_by_one else
               f'mode is {config.mode}, in which every token has neurons of its own to read')
            + '; it must be empty.')
    drafting, alone = (Parts(each, store, kind(store, config.prefill_chunk))
                       for each in (config, replace(config, draft_store=None)))
    left_out = f'mode {kind.mode}, and draft_store is left out: '
    no_room = Choice(kind.mode, left_out + 'dram_budget has no room for it'), alone
    if not drafting.slots:
        return [no_room]
    ours, theirs = (drafting.draft.costs(plan_window(store.manifest.geometry, parts.slots), costs)
                    for parts in (drafting, alone))
    reads = (f'reads of a pass take about {1e3 * ours.reads:.0f} ms with it in memory, '
             f'{1e3 * theirs.reads:.0f} without it')
    if max(ours.speed(drafted, USUAL_SHARE)
           for drafted in range(1, MOST_DRAFTED + 1)) < theirs.speed(0, USUAL_SHARE):
        return [(Choice(kind.mode, left_out + reads), alone)]
    return [(Choice(kind.mode, f'mode {kind.mode}: a pass checks the drafts of draft_store; '
                    + reads), drafting), no_room]


def load_parts(config: EngineConfig, store: FlashStore, costs: ReadCosts | None,
               log: Callable[[str], None]) -> tuple[Parts, str, MemoryPlan]:
    """Choose, plan, load, plan with what was measured: the parts, why these, and the plan.

    Raises FlashLlmError: BUDGET_TOO_SMALL, INVALID_PARAMETER, STORE_CORRUPT, READ_FAILED.
    """
    choices = mode_choices(config, store, costs)
    while True:
        # Named nowhere else, so that parts that are given up go before others are loaded.
        (_, reason), parts = choices.pop(0)
        log(reason)
        try:
            parts.plan()
            log('loading the resident weights')
            return parts, reason, parts.plan(parts.load())
        except FlashLlmError as error:
            if error.code is not ErrorCode.BUDGET_TOO_SMALL or not choices:
                raise
