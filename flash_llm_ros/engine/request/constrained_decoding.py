"""Which tokens an answer may go on with: llguidance over the model's own vocabulary.

A constraint becomes a parser that walks a trie of all tokens ("Efficient Guided Generation",
arXiv 2307.09702; llguidance's Earley parser over derivatives of regular expressions).
"""

from codecs import getincrementaldecoder
from collections.abc import Callable, Sequence
from functools import partial
from importlib.util import find_spec
import json
from types import ModuleType
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from flash_llm_ros.engine.plan import Part, PlanRow
from flash_llm_ros.engine.request.call_grammar import (
    call_grammar,
    mark_tokens,
    with_id,
    with_tokens,
)
from flash_llm_ros.engine.request.call_reader import CallReader
from flash_llm_ros.engine.request.constraint import Constraint, ConstraintKind, refuse
from flash_llm_ros.engine.request.constraint_grammar import parser_of
from flash_llm_ros.engine.request.constraint_trial import TRIAL_BYTES, ConstraintTrial
from flash_llm_ros.engine.text.call_format import CallFormat
from flash_llm_ros.engine.text.text_part import TextPart
from flash_llm_ros.engine.text.tokenizer import Vocabulary
from flash_llm_ros.engine.text.tools import Tool, call_id
from flash_llm_ros.model_spec import ModelSpec
from flash_llm_ros.store.errors import ErrorCode, FlashLlmError

WORK_BYTES = 20_000_000
_FORCED_CHARACTERS = 4096   # at a time; a constraint can force any number of them
_BYTES_PER_TOKEN = 130      # of the trie, about
_LIBRARY_BYTES = 3_000_000
_EXPLANATION = 400          # characters


class AnswerRules(Protocol):
    """What the tokens of one answer have to keep to, from its first token to its last."""

    complete: bool          # nothing may follow

    def allowed(self) -> NDArray[np.bool_] | None:
        """Which tokens may come next, [vocabulary]; None: any."""

    def forced(self) -> list[int]:
        """The tokens that have to come next, where there is no choice."""

    def take(self, token: int) -> None:
        """The answer goes on with this token."""

    def fitting(self, guess: list[int]) -> list[int]:
        """As many of the guessed tokens as may come next."""

    def check_end(self, reason: str) -> None:
        """Raise FlashLlmError(CONSTRAINT_UNMET) where the answer may not end here."""

    def check_answer(self, text: str) -> None:
        """Raise FlashLlmError(CONSTRAINT_UNMET) where the finished answer is not a right one."""


class NoRules:
    """Any text."""

    complete = False

    def allowed(self) -> None:
        return None

    def forced(self) -> list[int]:
        return []

    def take(self, token: int) -> None:
        pass

    def fitting(self, guess: list[int]) -> list[int]:
        return guess

    def check_end(self, reason: str) -> None:
        pass

    def check_answer(self, text: str) -> None:
        pass


class ConstrainedDecoding:
    """llguidance with the vocabulary of one model, made once; one `start` for every answer."""

    def __init__(self, vocabulary: Vocabulary, vocab_size: int,
                 end_tokens: tuple[int, ...]) -> None:
        """Raises FlashLlmError(INVALID_PARAMETER) where the package or an end token is missing."""
        self._library = _library()
        if not end_tokens:
            raise FlashLlmError(ErrorCode.INVALID_PARAMETER, 'structured is true, but the model '
                                'has no token that ends an answer; it must be false.')
        self._vocab_size = vocab_size
        wrapper = _Tokens(vocabulary, vocab_size, end_tokens)
        # Without slices, which triple the trie's memory to save milliseconds a token.
        self._tokenizer = self._library.LLTokenizer(
            wrapper, n_vocab=vocab_size, eos_token=list(end_tokens), slices=[])
        wrapper.tokens = []         # the trie has them
        self._vocabulary = vocabulary
        self._trial = ConstraintTrial(WORK_BYTES)

    def warm(self) -> None:
        """Have in memory what a first answer would bring there."""
        answer = self.start(Constraint(ConstraintKind.JSON_SCHEMA, '{"type": "string"}'))
        answer.allowed()
        answer.forced()

    def start(self, constraint: Constraint) -> 'ConstrainedAnswer':
        """Raises FlashLlmError(INVALID_CONSTRAINT) with an explanation."""
        found = self._trial.outcome(constraint)
        if found.reason:
            refuse(_explained(found.reason))
        kind = ConstraintKind.GRAMMAR if found.grammar else ConstraintKind(constraint.kind)
        try:
            matcher = parser_of(self._library, self._tokenizer, kind.name,
                                found.grammar or constraint.text, list(constraint.choices))
        except ValueError as error:
            refuse(_explained(str(error)))
        validate = None
        if constraint.kind == ConstraintKind.JSON_SCHEMA:
            validate = partial(self._trial.what_is_wrong, constraint.text)
        return self._answer(matcher, validate)

    def start_calls(self, form: CallFormat, tools: Sequence[Tool], choice: str,
                    prompt: list[int]) -> tuple['ConstrainedAnswer', CallReader]:
        """An answer that may ask for tools, as `choice` says, and what reads its calls.

        Raises FlashLlmError(INVALID_CONSTRAINT) that names the tool.
        """
        found = self._trial.outcome(Constraint(ConstraintKind.GRAMMAR,
                                               call_grammar(form, tools, choice)))
        if found.reason:
            for index, tool in enumerate(tools):
                alone = Constraint(ConstraintKind.JSON_SCHEMA, json.dumps(tool.schema))
                if reason := self._trial.outcome(alone).reason:
                    refuse(f'tools[{index}].parameters ({tool.name}): {_explained(reason)}')
            refuse(f'tools: {_explained(found.reason)}')
        tokens = mark_tokens(form, self._vocabulary.encode, self._tokenizer.decode_bytes)
        own_id = call_id(prompt)
        grammar = with_id(with_tokens(found.grammar, form, tokens), own_id)
        matcher = parser_of(self._library, self._tokenizer, 'GRAMMAR', grammar, [])
        reader = CallReader(form, tools, own_id, self._trial.what_is_wrong)
        return self._answer(matcher, reader.judge), reader

    def _answer(self, matcher: object,
                what_is_wrong: Callable[[str], str] | None) -> 'ConstrainedAnswer':
        return ConstrainedAnswer(matcher, self._tokenizer.decode_bytes, self._vocab_size,
                                 what_is_wrong)


class ConstraintsPart(Part):
    """Constraints in the memory plan; `decoding` is there once it is loaded."""

    def __init__(self, spec: ModelSpec, text: TextPart) -> None:
        """`text` has to be loaded first."""
        self._spec, self._text = spec, text

    def estimate(self) -> list[PlanRow]:
        trie = _BYTES_PER_TOKEN * self._spec.embedding.vocab_size
        return [PlanRow('llguidance', _LIBRARY_BYTES + trie)]

    def load(self) -> None:
        """Raises FlashLlmError(INVALID_PARAMETER)."""
        self.decoding = ConstrainedDecoding(self._text.tokenizer.vocabulary,
                                            self._spec.embedding.vocab_size, self._spec.end_tokens)

    def warm(self) -> None:
        self.decoding.warm()

    def buffers(self) -> list[PlanRow]:
        return [PlanRow('structured answers', WORK_BYTES, 'what one constraint may take'),
                PlanRow('constraint trial', TRIAL_BYTES,
                        'a process while a new one is tried, or an answer validated')]


class ConstrainedAnswer:
    """Keeps one answer to its constraint, and is its text, too: the bytes that the parser saw."""

    def __init__(self, matcher: object, bytes_of: object, vocab_size: int,
                 what_is_wrong: Callable[[str], str] | None) -> None:
        """`what_is_wrong`: an independent judge of the finished answer."""
        self._matcher, self._bytes_of = matcher, bytes_of
        self._what_is_wrong = what_is_wrong
        self._mask = np.zeros((vocab_size + 31) // 32, np.int32)
        self._vocab_size = vocab_size
        self._characters = getincrementaldecoder('utf-8')('replace')

    @property
    def complete(self) -> bool:
        return self._matcher.is_stopped()

    def allowed(self) -> NDArray[np.bool_]:
        """Raises FlashLlmError(INVALID_CONSTRAINT) where nothing can follow, or at a limit."""
        mask = self._mask
        self._matcher.unsafe_compute_mask_ptr(mask.ctypes.data, mask.nbytes)
        self._check()
        bits = np.unpackbits(mask.view(np.uint8), count=self._vocab_size, bitorder='little')
        return bits.view(bool)

    def forced(self) -> list[int]:
        tokens = self._matcher.compute_ff_tokens()
        self._check()
        return self.fitting(tokens)

    def take(self, token: int) -> None:
        self._matcher.consume_token(token)
        self._check()

    def fitting(self, guess: list[int]) -> list[int]:
        return guess[:self._matcher.validate_tokens(guess)]

    def check_end(self, reason: str) -> None:
        if not self._matcher.is_accepting():
            raise FlashLlmError(ErrorCode.CONSTRAINT_UNMET,
                                f'{reason} before the answer was what its constraint asks for.')

    def check_answer(self, text: str) -> None:
        if self._what_is_wrong is not None and (reason := self._what_is_wrong(text)):
            raise FlashLlmError(ErrorCode.CONSTRAINT_UNMET, 'The answer does not validate: '
                                f'{_explained(reason)}.')

    def step(self, token: int) -> str:
        """Text that this token completes, '' while a character is incomplete."""
        return self._characters.decode(self._bytes_of([token]))

    def _check(self) -> None:
        if self._matcher.is_error():
            refuse(_explained(self._matcher.get_error()))


class _Tokens:
    """The vocabulary as llguidance asks for it."""

    is_tokenizer_wrapper = True
    bos_token_id = None

    def __init__(self, vocabulary: Vocabulary, vocab_size: int,
                 end_tokens: tuple[int, ...]) -> None:
        self._vocabulary = vocabulary
        self.eos_token_id = end_tokens[0]
        texts, special = vocabulary.token_bytes()
        self.tokens = (texts + [b''] * (vocab_size - len(texts)))[:vocab_size]
        self.special_token_ids = sorted({*special, *end_tokens} & set(range(vocab_size)))

    def __call__(self, text: str) -> list[int]:
        tokens = self._vocabulary.encode_inside(text[:_FORCED_CHARACTERS])
        # The last one of a part might be another one in the whole.
        return tokens if len(text) <= _FORCED_CHARACTERS else tokens[:-1]


def _library() -> ModuleType:
    try:
        import llguidance
        if find_spec('jsonschema') is None:     # only the process that validates imports it
            raise ImportError("No module named 'jsonschema'")
    except (ImportError, ValueError) as error:
        raise FlashLlmError(
            ErrorCode.INVALID_PARAMETER,
            'structured is true, but the packages llguidance and jsonschema cannot be imported '
            f"({error}); pip install 'flash_llm_ros[structured]', or set it to false.") from None
    return llguidance


def _explained(error: str) -> str:
    if 'NoExtensionBias' in error:
        return 'there is no answer that it allows'
    text = ' '.join(error.replace('<non-verbose/>', '').split()).rstrip('.')
    return text if len(text) <= _EXPLANATION else f'{text[:_EXPLANATION]} ...'
