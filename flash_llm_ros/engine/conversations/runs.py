"""What runs on the model, one request at a time, and what of it stays in the KV cache."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from flash_llm_ros.engine.config import EngineConfig
from flash_llm_ros.engine.conversations.kept_prompt import KeptPrompt, settings_of
from flash_llm_ros.engine.conversations.kv_snapshot import KvSnapshot
from flash_llm_ros.engine.conversations.sessions import Session, Sessions
from flash_llm_ros.engine.model.draft_model import DraftModel
from flash_llm_ros.engine.model.model import Model
from flash_llm_ros.engine.request.call_reader import CallReader
from flash_llm_ros.engine.request.constrained_decoding import AnswerRules, ConstraintsPart
from flash_llm_ros.engine.request.constraint import refuse
from flash_llm_ros.engine.request.generation import FinishReason, Generation, GenerationRequest
from flash_llm_ros.engine.request.prompt_tokens import PromptTokens, own_system_prompt
from flash_llm_ros.engine.text.chat_template import check_text
from flash_llm_ros.engine.text.text_part import TextPart
from flash_llm_ros.engine.text.tokenizer import TextStream
from flash_llm_ros.engine.text.tools import Tool, digest
from flash_llm_ros.store.errors import ErrorCode, FlashLlmError
from flash_llm_ros.store.flash_store import FlashStore


@dataclass(frozen=True)
class Run:
    """A generation, the session that it is a turn of, where turns begin, and its system prompt."""

    generation: Generation
    session: Session | None
    turns: tuple[int, ...]
    kept: KeptPrompt | None


@dataclass(frozen=True)
class Suspended:
    """A generation that waits while another runs; its state lies on flash."""

    run: Run
    snapshot: KvSnapshot


class Runs:
    """Starts requests with as much of them in the KV cache as is kept; Engine says what of."""

    def __init__(self, config: EngineConfig, store: FlashStore, model: Model,
                 draft: DraftModel | None, text: TextPart, constraints: ConstraintsPart | None,
                 log: Callable[[str], None]) -> None:
        """`constraints`: None where requests must not have any."""
        self._constraints, self._draft = constraints, draft
        # Where nothing is read a guess costs up to two thirds of a pass, and half of them are
        # right.
        self._lookup_tokens = (min(config.lookup_tokens, len(model.logits) - 1)
                               if model.window.streams else 0)
        self._config, self._model, self._log = config, model, log
        self._tokenizer = text.tokenizer
        self._prompts = PromptTokens(model.spec, text.tokenizer, text.template,
                                     config.context_length)
        self.sessions = Sessions(config.max_sessions, config.kv_folder, model, log)
        self._kept_settings = settings_of(store, config, model)
        self._kept_prompt: KeptPrompt | None = None         # the last one asked for
        self._kept_in_place: KeptPrompt | None = None       # whose rows are in the KV cache
        self._run: Run | None = None

    def keep_system_prompt(self, system_prompt: str) -> None:
        """As Engine.keep_system_prompt."""
        self._give_up()
        check_text('system_prompt', system_prompt, self._config.context_length)
        kept = self._kept(system_prompt)
        count = len(kept.tokens)
        if not count:       # a template that begins with the user's words
            return
        if count >= self._config.context_length:
            raise FlashLlmError(ErrorCode.PROMPT_TOO_LONG,
                                f'system_prompt has {count} tokens with its template; '
                                f'context_length is {self._config.context_length}.')
        self.sessions.load(None)
        if not kept.restore(self._model, self._log):
            self._log(f'computing the {count} tokens of the system prompt')
            tokens = np.array(kept.tokens, np.int64)
            for start in range(0, count, self._model.chunk):
                chunk = tokens[start:start + self._model.chunk]
                self._model.forward(chunk, start, dense=True)
            kept.keep(self._model, self._log)
        else:
            self._log(f'read the {count} tokens of the system prompt from {kept.path}')
        self._kept_in_place = kept

    def check(self, request: GenerationRequest) -> None:
        """As Engine.check."""
        self._prompts.check(request)

    def start(self, request: GenerationRequest) -> Generation:
        """As Engine.start."""
        self._give_up()
        self._prompts.check(request)
        session = self.sessions.find(request.session_id) if request.session_id else None
        if session is None:
            prompt = self._prompts.first(request)
        else:
            _check_system_prompt(request, session)
            if digest(request.tools) != session.tools:
                raise FlashLlmError(ErrorCode.INVALID_REQUEST, 'tools are not those that session '
                                    f'{request.session_id!r} began with; each turn has to bring '
                                    'them, also where tool_choice is none.')
            prompt = self._prompts.following(request, session.tokens.tolist(), session.turns,
                                             session.system_prompt)
        stream, rules, reader = self._answer_rules(request, prompt.tokens)
        if request.session_id:
            session = self.sessions.begin(request.session_id, session, own_system_prompt(request),
                                          digest(request.tools))
        if prompt.dropped:
            self.sessions.compute_anew(session)
            self._log(f'session {request.session_id!r} has lost {prompt.dropped} tokens of its '
                      'oldest turns: the context is full')
        try:
            cached, kept = self._load(request, session, prompt.tokens)
            self._model.length = cached
            generation = Generation(
                self._model, stream, prompt.tokens, request, self._config.context_length,
                self._lookup_tokens, rules, reader, draft=self._draft, cached=cached,
                border=0 if kept is None else len(kept.tokens),
                at_border=lambda: self._keep_prompt(kept))
        except BaseException:
            if session is not None:
                self.sessions.abandon(session)
            raise
        generation.stats.dropped_tokens = prompt.dropped
        self._run = Run(generation, session, prompt.turns, kept)
        return generation

    def suspend(self) -> Suspended:
        """As Engine.suspend."""
        if self._run is None:
            raise RuntimeError('nothing runs that could be suspended')
        snapshot = KvSnapshot(self._config.kv_folder, self._model, self._model.length, logits=True)
        suspended = Suspended(self._run, snapshot)
        self._run.generation.pause()
        self._run = self._kept_in_place = None
        self.sessions.leave()
        return suspended

    def resume(self, suspended: Suspended) -> None:
        """As Engine.resume."""
        self._give_up()
        self.sessions.load(None)
        self._kept_in_place = None
        run, snapshot = suspended.run, suspended.snapshot
        self._model.length = snapshot.length
        try:
            snapshot.restore(self._model)
        except FlashLlmError:
            self.discard(suspended)
            raise
        snapshot.close()
        self.sessions.enter(run.session)
        if run.kept is not None and snapshot.length >= len(run.kept.tokens):
            self._kept_in_place = run.kept
        run.generation.go_on()
        self._run = run

    def discard(self, suspended: Suspended) -> None:
        """As Engine.discard."""
        suspended.run.generation.stop(FinishReason.CANCELLED)
        if suspended.run.session is None:
            suspended.snapshot.close()
        else:
            self.sessions.abandon(suspended.run.session, suspended.snapshot)

    def close(self) -> None:
        """Forget everything."""
        self._run = None
        self.sessions.reset('')

    def _give_up(self) -> None:
        """Settle what ran last: a session keeps a turn that came to its end, and no other."""
        run, self._run = self._run, None
        if run is None:
            return
        generation = run.generation
        if generation.finish_reason is FinishReason.RUNNING:
            generation.stop(FinishReason.CANCELLED)
        if run.session is not None:
            if generation.finish_reason in (FinishReason.STOP, FinishReason.LENGTH):
                tokens = [*generation.prompt_tokens, *generation.tokens]
                # The last one is computed with what follows, which needs a first token.
                self.sessions.keep(run.session, tokens, run.turns,
                                   min(generation.rows, len(tokens) - 1))
            else:
                self.sessions.abandon(run.session)

    def _keep_prompt(self, kept: KeptPrompt) -> None:
        """Write the system prompt, which was computed just now and nothing behind it yet."""
        kept.keep(self._model, self._log)
        self._kept_in_place = kept

    def _answer_rules(self, request: GenerationRequest, tokens: list[int]
                      ) -> tuple[TextStream, AnswerRules | None, CallReader | None]:
        # A model that has tools would write a call where it may not, unless kept from it.
        has_grammar = request.tools and request.constraint is None and not request.stop
        is_free = request.tool_choice == 'none' and self._constraints is None
        if request.constraint is None and (not has_grammar or is_free):
            return self._tokenizer.stream(), None, None
        if self._constraints is None:
            refuse('structured is false here; it must be true for constraints and tools')
        if has_grammar:
            answer, reader = self._constraints.decoding.start_calls(
                self._prompts.calls(), request.tools, request.tool_choice, tokens)
            return answer, answer, reader
        if request.stop:
            raise FlashLlmError(ErrorCode.INVALID_REQUEST, 'stop must be empty where there is a '
                                'constraint, which says by itself when an answer is complete.')
        answer = self._constraints.decoding.start(request.constraint)
        return answer, answer, None

    def _load(self, request: GenerationRequest, session: Session | None,
              tokens: list[int]) -> tuple[int, KeptPrompt | None]:
        """How many tokens are in the KV cache, and the system prompt that they begin with."""
        rows = self.sessions.load(session)
        if rows:
            self._kept_in_place = None
            return rows, None
        kept = (self._kept(request.system_prompt, request.tools) if request.keep_system_prompt
                else None)
        if kept is None or not kept.begins(tokens):
            self._kept_in_place = None
            return 0, None
        count = len(kept.tokens)
        if self._kept_in_place is not kept or self._model.reach(count) < count:
            self._kept_in_place = kept if kept.restore(self._model, self._log) else None
        return (0 if self._kept_in_place is None else count), kept

    def _kept(self, system_prompt: str, tools: tuple[Tool, ...] = ()) -> KeptPrompt:
        of = system_prompt, tools
        if self._kept_prompt is None or self._kept_prompt.of != of:
            self._kept_prompt = KeptPrompt(of, self._prompts.preamble(*of),
                                           self._config.kv_folder, self._kept_settings)
        return self._kept_prompt


def _check_system_prompt(request: GenerationRequest, session: Session) -> None:
    """The node's own system prompt may change meanwhile; one that a request brings may not."""
    brought = [(f'messages[{index}] of the role system', message.content)
               for index, message in enumerate(request.messages) if message.role == 'system']
    if request.system_prompt and not request.keep_system_prompt:
        brought.append(('system_prompt', request.system_prompt))
    for field, text in brought:
        if text != session.system_prompt:
            raise FlashLlmError(ErrorCode.INVALID_REQUEST,
                                f'{field} is not the one that session {request.session_id!r} '
                                'began with; reset the session, or leave it out.')
