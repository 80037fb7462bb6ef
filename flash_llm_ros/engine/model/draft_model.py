"""A second, small model, wholly in DRAM, that guesses how the large one goes on."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from flash_llm_ros.engine.config import EngineConfig
from flash_llm_ros.engine.memory.read_estimate import estimated_reads
from flash_llm_ros.engine.memory.scratch import scratch_bytes
from flash_llm_ros.engine.memory.window import Window
from flash_llm_ros.engine.memory.window_plan import WindowPlan, whole_window
from flash_llm_ros.engine.model.attention import attention_of
from flash_llm_ros.engine.model.feed_forward.dense import DenseFeedForward
from flash_llm_ros.engine.model.model import Model
from flash_llm_ros.engine.plan import Part, PlanRow
from flash_llm_ros.store.device_profile import ReadCosts
from flash_llm_ros.store.errors import ErrorCode, FlashLlmError
from flash_llm_ros.store.flash_store import RESIDENT, TOKENIZER, FlashStore
from flash_llm_ros.store.manifest import Manifest

MOST_DRAFTED = 8            # tokens a pass: rows of logits are planned for them
USUAL_SHARE = 0.7           # of guesses, that are right, before any was checked
_Pick = Callable[[NDArray[np.float32]], int]

# What a robot's computer takes for a byte of weights, to read it once for a token, and to compute
# with it for each further token of a pass.
_FIRST_ROW_SECONDS, _NEXT_ROW_SECONDS = 1e-10, 0.6e-10


class PassCosts(NamedTuple):
    """Seconds; estimates, so that the same settings draft the same tokens."""

    reads: float        # of a pass of the large model, while which it computes
    first_row: float    # to compute a pass of one token
    next_row: float     # for each further token of the pass
    draft: float        # of a pass of the draft model

    def seconds(self, drafted: int) -> float:
        """Of drafting so many tokens and checking them."""
        return (max(self.reads, self.first_row + drafted * self.next_row)
                + drafted * self.draft)

    def speed(self, drafted: int, share: float) -> float:
        """Tokens a second, where this share of the guesses is right.

        With a share a, k drafted tokens give 1 + a + ... + a^k tokens ("Fast Inference from
        Transformers via Speculative Decoding", arXiv 2211.17192, section 3.3).
        """
        return sum(share ** i for i in range(drafted + 1)) / self.seconds(drafted)


class DraftPart(Part):
    """The draft model in the memory plan; `model` is there once it is allocated."""

    def __init__(self, config: EngineConfig, large: FlashStore) -> None:
        """Raises FlashLlmError: STORE_*, INVALID_PARAMETER where its tokens are other ones."""
        self._config, self._large = config, large.manifest
        self._store = FlashStore.open(config.draft_store, large.progress)
        mine = self._store.manifest
        if mine.files[TOKENIZER]['sha256'] != self._large.files[TOKENIZER]['sha256']:
            raise FlashLlmError(
                ErrorCode.INVALID_PARAMETER,
                f'draft_store is {config.draft_store}, whose tokenizer is not that of '
                f'{config.store}; it must be a store of a model with the same tokenizer.')
        context = min(config.context_length, mine.model.max_context)
        if mine.model.feed_forward.experts is not None:
            raise FlashLlmError(
                ErrorCode.INVALID_PARAMETER,
                f'draft_store is {config.draft_store}, a mixture of experts; it must be a store '
                'of a dense model, which is small enough to lie in memory.')
        self._feed_forward = DenseFeedForward(self._store, config.prefill_chunk)
        self._attention = attention_of(self._store, config, context)
        self._window = whole_window(mine.geometry)

    def estimate(self) -> list[PlanRow]:
        return [PlanRow(f'draft {row.name}', row.bytes) for row in self._attention.estimate()]

    def load(self) -> None:
        """Raises FlashLlmError: STORE_CORRUPT, READ_FAILED."""
        if self._config.verify:
            self._store.verify_resident()
        self._attention.load()
        self._feed_forward.load()

    def warm(self) -> None:
        self._attention.warm()

    def buffers(self) -> list[PlanRow]:
        geometry = self._store.manifest.geometry
        rows = sum(row.bytes for row in self._attention.buffers())
        rows += self._window.bytes(geometry)
        rows += scratch_bytes(self._store.manifest, self._attention.context,
                              self._config.prefill_chunk, self._config.threads, 1)
        return [PlanRow('draft model', rows, self._store.manifest.model.name)]

    def costs(self, large: WindowPlan, flash: ReadCosts | None) -> PassCosts:
        """With a window of the large model that is shared out so; None: flash was not probed."""
        mine, theirs = _weight_bytes(self._store.manifest), _weight_bytes(self._large)
        return PassCosts(estimated_reads(self._large.geometry, large, flash).seconds,
                         theirs * _FIRST_ROW_SECONDS, theirs * _NEXT_ROW_SECONDS,
                         mine * _FIRST_ROW_SECONDS)

    def allocate(self, costs: PassCosts) -> 'DraftModel':
        """Read all of it.

        Raises FlashLlmError: READ_FAILED, CHECKSUM_MISMATCH; MemoryError, OSError.
        """
        self._attention.allocate()
        window = Window(self._store, self._config, self._window)
        self._attention.attach(window)
        self._feed_forward.attach(window)
        model = Model(self._store.manifest.model, self._attention, self._feed_forward, window,
                      self._config.prefill_chunk)
        return DraftModel(model, costs, self._large.model.embedding.vocab_size)


class DraftModel:
    """Follows one text after another and goes on with them."""

    most = MOST_DRAFTED

    def __init__(self, model: Model, costs: PassCosts, vocabulary: int) -> None:
        """`vocabulary`: tokens of the large model, which may have more or fewer rows for them."""
        self.costs, self._model = costs, model
        self._scores = np.full(vocabulary, -np.inf, np.float32)
        self._rows: list[int] = []      # tokens whose keys and values are there
        self._whole_chunks = 0          # of these, as any text that begins with them has them
        self._reader: object = None     # whose text it is

    def room(self, tokens: list[int]) -> int:
        """How many tokens its context still takes behind these."""
        return max(0, self._model.attention.context - len(tokens))

    def follow(self, reader: object, tokens: list[int]) -> Iterator[None]:
        """Run what it has not seen of a text, but for the last chunk; yields after each chunk.

        What is lost because others act at every step is left to `go_on`.
        """
        if self.room(tokens):
            unseen = len(tokens) - self._seen(reader, tokens)
            for _ in range(unseen // self._model.chunk):
                self._seen(reader, tokens)
                self._run(tokens, last=False)
                yield

    def go_on(self, reader: object, tokens: list[int], count: int, pick: _Pick) -> list[int]:
        """The next `count` tokens behind a text, as `pick` chooses them of float32 [vocabulary]."""
        found: list[int] = []
        while len(found) < count:
            self._seen(reader, tokens + found)
            self._run(tokens + found, last=True)
            found.append(pick(self._scores))
        return found

    def limit_threads(self, most: int) -> None:
        self._model.window.core.limit_threads(most)

    def close(self) -> None:
        self._model.window.close()

    def _seen(self, reader: object, tokens: list[int]) -> int:
        """Keep of its rows those of this text; how many these are, one less than its tokens.

        Of another reader's text only those stay that would be the same bytes if they were computed
        anew: what is guessed follows from the text alone.
        """
        most = len(tokens) - 1 if reader is self._reader else self._whole_chunks
        self._reader = reader
        both = enumerate(zip(self._rows, tokens, strict=False))
        same = next((place for place, (mine, given) in both if mine != given), len(self._rows))
        same = self._model.reach(min(same, most, len(tokens) - 1))
        self._whole_chunks = min(self._whole_chunks, same // self._model.chunk * self._model.chunk)
        del self._rows[same:]
        return same

    def _run(self, tokens: list[int], last: bool) -> None:
        """One chunk of what it has not seen, or all the rest of it, and the scores behind it."""
        model, begin = self._model, len(self._rows)
        while True:
            end = min(len(tokens), (begin // model.chunk + 1) * model.chunk)
            behind = last and end == len(tokens)
            model.forward(np.array(tokens[begin:end], np.int64), begin, dense=True,
                          logits=model.logits if behind else None)
            if begin == self._whole_chunks and end - begin == model.chunk:
                self._whole_chunks = end
            self._rows += tokens[begin:end]
            begin = end
            if behind or not last:
                break
        if behind:
            count = min(len(self._scores), model.logits.shape[1])
            self._scores[:count] = model.logits[0, :count]


def _weight_bytes(manifest: Manifest) -> int:
    return manifest.geometry.file_bytes + manifest.files[RESIDENT]['bytes']
