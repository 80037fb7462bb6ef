"""What mode aggressive puts in the place of the whole layers and the whole output head."""

from flash_llm_ros.engine.head_shortlist import HeadShortlist, shortlist_scratch_bytes
from flash_llm_ros.engine.leading_feed_forward import LeadingFeedForward
from flash_llm_ros.engine.memory.window import Window
from flash_llm_ros.engine.plan import PlanRow
from flash_llm_ros.engine.tail_correction import correction_bytes, load_corrections
from flash_llm_ros.store.aggressive import HEAD_SKETCH
from flash_llm_ros.store.errors import ErrorCode, FlashLlmError
from flash_llm_ros.store.flash_store import FlashStore
from flash_llm_ros.store.geometry import LeadingGeometry


class AggressiveMode:
    """A store's setting for one share of the neurons; `load`, then `feed_forward`."""

    def __init__(self, store: FlashStore, neuron_share: float | None) -> None:
        """Raises FlashLlmError(INVALID_PARAMETER) where the store is not prepared for it."""
        aggressive = store.manifest.aggressive
        if aggressive is None:
            raise FlashLlmError(ErrorCode.INVALID_PARAMETER,
                                'mode is aggressive, but the store was not prepared for it; use '
                                '`flash_llm order`, or another mode.')
        self._store, self._head_rows = store, aggressive.head_rows
        self.share, self.setting = aggressive.setting(neuron_share)
        self._place = store.leading_corrections(self.share)
        self.geometry = LeadingGeometry.of(store.manifest.geometry, self.setting.widths)
        self.head_shortlist: HeadShortlist | None = None

    def estimate(self) -> list[PlanRow]:
        """The least that loading takes."""
        sketch = self._store.manifest.files[HEAD_SKETCH]['bytes']
        return [PlanRow('corrections', correction_bytes(self._store, self._place), ''),
                PlanRow('head sketch', sketch, '')]

    def buffers(self) -> list[PlanRow]:
        taken = shortlist_scratch_bytes(self._store.manifest.model, self._head_rows)
        return [PlanRow('head shortlist', taken, f'{self._head_rows} rows a token')]

    def load(self, threads: int) -> None:
        self._corrections = load_corrections(self._store, self._place)
        self.head_shortlist = HeadShortlist(self._store, threads, self._head_rows)

    def feed_forward(self, window: Window, chunk: int) -> LeadingFeedForward:
        return LeadingFeedForward(window, self._store.manifest.model, chunk, self.setting.widths,
                                  self._corrections)

    def describe(self) -> str:
        """For the log: what is used, and its price."""
        used = sum(self.setting.widths) / (len(self.setting.widths)
                                           * self._store.manifest.model.feed_forward.size)
        price = f'perplexity {self.setting.perplexity:.3f} times that of exact mode'
        recovery = self._store.manifest.recovery
        if recovery is not None and (found := recovery.aggressive.get(self.share)):
            price = (f'perplexity, with all rows, {found.after:.3f} instead of {found.before:.3f} '
                     'times that of exact mode by learned corrections')
        return (f'mode aggressive: {used:.0%} of the neurons and {self._head_rows} rows of the '
                f'output head a token; {price} when it was measured')
