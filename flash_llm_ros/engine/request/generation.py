"""One request from prompt to answer."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
import time

import numpy as np

from flash_llm_ros.engine.model.draft_model import DraftModel
from flash_llm_ros.engine.model.model import Model
from flash_llm_ros.engine.request.call_reader import CallReader
from flash_llm_ros.engine.request.constrained_decoding import AnswerRules, NoRules
from flash_llm_ros.engine.request.constraint import Constraint
from flash_llm_ros.engine.request.draft_source import DraftSource, FirstGuess
from flash_llm_ros.engine.request.model_drafts import ModelDrafts
from flash_llm_ros.engine.request.prompt_lookup import PromptLookup
from flash_llm_ros.engine.request.sampling import Sampler, SamplingParams
from flash_llm_ros.engine.request.stop_strings import StopStrings
from flash_llm_ros.engine.text.chat_template import Message
from flash_llm_ros.engine.text.tokenizer import TextStream
from flash_llm_ros.engine.text.tools import Tool, ToolCall
from flash_llm_ros.finish_reason import FinishReason

_TOO_EARLY = {FinishReason.LENGTH: 'max_tokens or the context was used up',
              FinishReason.DEADLINE: 'the deadline passed'}


@dataclass(frozen=True)
class GenerationRequest:
    """What is asked for; checked by Engine.start."""

    prompt: str = ''                # or messages
    system_prompt: str = ''
    raw: bool = False               # True: no chat template
    sampling: SamplingParams = field(default_factory=SamplingParams)
    max_tokens: int = 128
    stop: tuple[str, ...] = ()
    constraint: Constraint | None = None    # what the answer has to look like
    tools: tuple[Tool, ...] = ()    # what the model may ask for
    tool_choice: str = 'auto'       # none, required, or the name of a tool
    messages: tuple[Message, ...] = ()  # a conversation so far, instead of a prompt
    session_id: str = ''            # goes on with this session's conversation; '': none
    drop_oldest_turns: bool = False     # of the session, where the context is full
    keep_system_prompt: bool = False    # its KV cache on flash, for the next that has it, too


@dataclass
class GenerationCost:
    """What a request cost so far; times in seconds, sizes in bytes."""

    prompt_tokens: int
    seed: int
    cached_tokens: int = 0          # of the prompt, in the KV cache before it began
    dropped_tokens: int = 0         # of the session's oldest turns, for which there was no room
    generated_tokens: int = 0
    forced_tokens: int = 0          # given by the constraint, run through the model together
    time_to_first_token: float = 0.0
    tokens_per_second: float = 0.0
    flash_bytes: int = 0
    flash_reads: int = 0
    window_hits: int = 0
    window_misses: int = 0
    window_foreseen: int = 0        # groups read ahead for the layer that used them
    active_fraction: float = 1.0
    passes: int = 0                 # of the model for the answer, behind its first tokens
    drafted_tokens: int = 0         # guesses that passes checked: prompt lookup's, a draft model's
    accepted_tokens: int = 0        # of these, right ones

    @property
    def hit_rate(self) -> float:
        """Share of the groups that were in the window before they were foreseen, [0, 1]."""
        groups = self.window_hits + self.window_misses + self.window_foreseen
        return self.window_hits / groups if groups else 0.0


class Generation:
    """Iterate over it for the pieces of the answer.

    A piece comes after every pass over the flash: for a chunk of the prompt (''), or for a token
    and those that a constraint forces behind it; it may be empty.
    Raises FlashLlmError when the flash fails, and CONSTRAINT_UNMET when a constrained answer has
    to end before it is complete, or does not validate. `stop` may be called from any thread.
    """

    def __init__(self, model: Model, stream: TextStream, tokens: list[int],
                 request: GenerationRequest, context: int, lookup_tokens: int = 0,
                 rules: AnswerRules | None = None, reader: CallReader | None = None, *,
                 draft: DraftModel | None = None, cached: int = 0, border: int = 0,
                 at_border: Callable[[], None] = lambda: None) -> None:
        """`rules` are the request's constraint; `stream` has to give the text they are about.

        `reader` takes the calls out of an answer that may have some.
        The first `cached` tokens are in the KV cache; a chunk of the prompt ends at `border`, and
        `at_border` is called behind it.
        """
        self._model, self._stream, self._context = model, stream, context
        self._prompt = np.asarray(tokens, np.int64)
        self._border, self._at_border = border, at_border
        self._max_tokens = request.max_tokens
        self._sampler = Sampler(request.sampling, self._prompt, model.spec.embedding.vocab_size)
        self._drafts: DraftSource = PromptLookup(tokens, lookup_tokens)
        if draft is not None:
            self._drafts = FirstGuess([self._drafts, ModelDrafts(draft, tokens, self._sampler)])
        self._reader = reader
        self._stops = reader or StopStrings(request.stop)
        self._rules = rules or NoRules()
        # What every answer begins with runs with the prompt.
        room = min(request.max_tokens, context - len(tokens))
        self._opening = self._rules.forced()[:room]
        self._asked_to_stop: FinishReason | None = None
        self._begin_counts: dict[str, int] = {}
        self._begin = self._first = 0.0     # s on the monotonic clock: of the prompt, of a token
        self._first_tokens = 0              # that came with it
        self.finish_reason = FinishReason.RUNNING
        self.phase = 'prefill'
        self.prompt_tokens = tokens
        self.tokens: list[int] = []
        self.rows = cached              # of prompt and answer, that are in the KV cache
        self.text = ''
        self.stats = GenerationCost(len(tokens), request.sampling.seed, cached)

    @property
    def tool_calls(self) -> tuple[ToolCall, ...]:
        """What the model asks for, once its answer has come to its end; `text` is the rest."""
        return () if self._reader is None else self._reader.calls

    def stop(self, reason: FinishReason) -> None:
        """End at the next piece, with the text so far."""
        self._asked_to_stop = reason

    def pause(self) -> None:
        """Others use model and time until `go_on`: none of it is this request's cost."""
        self._paused = time.monotonic(), self._counts()

    def go_on(self) -> None:
        """The end of a pause."""
        since, counts = self._paused
        paused = time.monotonic() - since
        self._begin, self._first = self._begin + paused, self._first + paused
        now = self._counts()
        for name in self._begin_counts:
            self._begin_counts[name] += now[name] - counts[name]

    def __iter__(self) -> Iterator[str]:
        self._begin_counts = self._counts()
        self._begin = time.monotonic()
        logits = self._model.logits
        tokens = np.concatenate([self._prompt, np.array(self._opening, np.int64)])
        try:
            starts = [*range(self.rows, self._border, self._model.chunk),
                      *range(max(self.rows, self._border), len(tokens), self._model.chunk)]
            for start, end in pairwise([*starts, len(tokens)]):
                if self._stopped():
                    break
                last = end == len(tokens)
                self._model.forward(tokens[start:end], start, dense=True,
                                    logits=logits[:1] if last else None)
                self.rows = end
                if end == self._border:
                    self._at_border()
                if not last:
                    yield ''
            else:
                self.phase = 'decode'
                yield from self._decode(logits)
            if self.finish_reason in _TOO_EARLY:
                self._rules.check_end(_TOO_EARLY[self.finish_reason])
            if self.finish_reason in (FinishReason.STOP, FinishReason.LENGTH):
                self._rules.check_answer(self.text)
            self._update_cost()
        except GeneratorExit:               # nobody reads on, and the model may be closed
            if self.finish_reason == FinishReason.RUNNING:
                self.finish_reason = FinishReason.CANCELLED
            raise
        except BaseException:               # also of an answer that its constraint has not
            if self.finish_reason in (FinishReason.RUNNING, FinishReason.STOP,
                                      FinishReason.LENGTH):
                self.finish_reason = FinishReason.ERROR
            self._update_cost()
            raise

    def _decode(self, logits: np.ndarray) -> Iterator[str]:
        guess: list[int] = []
        row = 0                     # of the logits behind the last token
        if self._opening:
            _, piece = self._take_forced(self._opening)
            self._count_time()
            yield piece
        while self._goes_on():
            token = self._sampler.pick(logits[row], self._rules.allowed())
            piece = self._accept(token)
            forced: list[int] = []
            if self.finish_reason == FinishReason.RUNNING:
                forced, text = self._take_forced(self._rules.forced())
                piece += text
            self._count_time()
            yield piece
            if not self._goes_on():
                break
            new = [token, *forced]
            while new and row < len(guess) and guess[row] == new[0]:
                row += 1
                self.rows += 1
                del new[0]
                self.stats.accepted_tokens += 1
            if new:
                self._drafts.learn(row, len(guess))
                for _ in self._drafts.prepare():
                    yield ''
                    if self._stopped():
                        break
                guess, row = self._rules.fitting(self._drafts.guess(self._room())), 0
                self.stats.drafted_tokens += len(guess)
                yield from self._run(new, guess, logits)
        if self.finish_reason == self._asked_to_stop:
            rest = self._stops.flush()
            self.text += rest
            yield rest

    def _goes_on(self) -> bool:
        return self.finish_reason == FinishReason.RUNNING and not self._stopped()

    def _run(self, tokens: list[int], guess: list[int], logits: np.ndarray) -> Iterator[str]:
        """Run accepted tokens and guesses; afterwards `logits` has those behind the last tokens.

        One pass takes as many as a chunk of a prompt. Pieces ('') come between passes.
        """
        position = len(self._prompt) + len(self.tokens) - len(tokens)
        most = self._model.chunk
        whole = np.array([*tokens, *guess], np.int64)
        last = max(0, len(whole) - most)        # begins the last pass
        for start in range(0, last, most):
            chunk = whole[start:min(start + most, last)]
            self._model.forward(chunk, position + start, dense=len(chunk) > 1)
            self.rows = position + start + len(chunk)
            yield ''
            if self._stopped():
                return
        chunk = whole[last:]
        self._model.forward(chunk, position + last, dense=len(chunk) > 1,
                            logits=logits[:1 + len(guess)])
        self.rows = position + len(tokens)
        self.stats.passes += 1

    def _take_forced(self, forced: list[int]) -> tuple[list[int], str]:
        """Those that still fit into the answer, and their text."""
        taken, piece = [], ''
        for token in forced:
            if self.finish_reason != FinishReason.RUNNING:
                break
            self._sampler.see(token)
            piece += self._accept(token)
            taken.append(token)
        self.stats.forced_tokens += len(taken)
        return taken, piece

    def _count_time(self) -> None:
        now = time.monotonic()
        if not self._first_tokens:
            self._first, self._first_tokens = now, len(self.tokens)
            self.stats.time_to_first_token = now - self._begin
        elif now > self._first:
            later = len(self.tokens) - self._first_tokens
            self.stats.tokens_per_second = later / (now - self._first)
        self._update_cost()

    def _room(self) -> int:
        """How many tokens may be guessed behind the last one."""
        used = len(self._prompt) + len(self.tokens)
        return min(self._context - used, self._max_tokens - len(self.tokens) - 1,
                   self._model.chunk - 1)

    def _accept(self, token: int) -> str:
        """The text a token adds; sets the finish reason when it ends the answer."""
        self.tokens.append(token)
        self._drafts.add(token)
        self._rules.take(token)
        if token in self._model.spec.end_tokens:
            self.finish_reason = FinishReason.STOP
            piece = self._stops.flush()
        else:
            piece = self._stops.feed(self._stream.step(token))
            if self._stops.met or self._rules.complete:
                self.finish_reason = FinishReason.STOP
            elif (len(self.tokens) >= self._max_tokens
                    or len(self._prompt) + len(self.tokens) >= self._context):
                self.finish_reason = FinishReason.LENGTH
                piece += self._stops.flush()
        self.text += piece
        return piece

    def _stopped(self) -> bool:
        if self._asked_to_stop is not None:
            self.finish_reason = self._asked_to_stop
        return self._asked_to_stop is not None

    def _counts(self) -> dict[str, int]:
        feed_forward = self._model.feed_forward
        return {**self._model.window.core.stats(), 'active': feed_forward.active_neurons,
                'total': feed_forward.total_neurons}

    def _update_cost(self) -> None:
        counts, stats = self._counts(), self.stats
        used = {name: counts[name] - before for name, before in self._begin_counts.items()}
        stats.generated_tokens = len(self.tokens)
        stats.flash_bytes, stats.flash_reads = used['flash_bytes'], used['flash_reads']
        stats.window_hits, stats.window_misses = used['hits'], used['misses']
        stats.window_foreseen = used['prefetch_used']
        stats.active_fraction = used['active'] / used['total'] if used['total'] else 1.0
