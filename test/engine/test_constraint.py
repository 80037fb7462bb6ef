"""Answers keep to their constraint, or end with an error that says why they do not."""

import json
from pathlib import Path
import re
import sys

from generation_cases import KINDS, MODES, PROMPTS, opened, request
from jsonschema import Draft202012Validator
import numpy as np
import pytest
from refusals import assert_error

from flash_llm_ros.engine import (
    Constraint,
    ConstraintKind,
    Engine,
    FinishReason,
    Generation,
    SamplingParams,
)
from flash_llm_ros.engine.request.constrained_decoding import ConstrainedDecoding
from flash_llm_ros.engine.request.constraint_trial import ConstraintTrial, Outcome
from flash_llm_ros.engine.text.tokenizer import load_tokenizer
from flash_llm_ros.store.errors import ErrorCode, FlashLlmError
from flash_llm_ros.store.flash_store import FlashStore

SCHEMA = {
    'type': 'object',
    'properties': {'command': {'enum': ['move', 'turn', 'stop']},
                   'speed': {'type': 'number', 'minimum': 0, 'maximum': 1.5, 'multipleOf': 0.5},
                   'times': {'type': 'array', 'items': {'type': 'integer', 'minimum': 0,
                                                        'maximum': 99}, 'maxItems': 3}},
    'required': ['command', 'speed', 'times'], 'additionalProperties': False}
JSON = Constraint(ConstraintKind.JSON_SCHEMA, json.dumps(SCHEMA))
CHOICES = ('go', 'going', 'say "no"\\ no', 'zwölf 日本', 'a\nb\t', "it's <|im_end|>", '/x/ | "y"')
REGEX = Constraint(ConstraintKind.REGEX, r'(ab|c){2,5}-[0-9]{3}')
# Balanced brackets, which no regular expression describes.
GRAMMAR = Constraint(ConstraintKind.GRAMMAR, 'start: b\nb: "(" b? ")" | "[" b? "]"')
SAMPLINGS = (SamplingParams(), SamplingParams(temperature=2.0, seed=3),
             SamplingParams(temperature=0.7, seed=4, top_k=3, repetition_penalty=1.3),
             SamplingParams(temperature=1.0, seed=5, top_p=0.4, min_p=0.1))


@pytest.fixture(scope='module')
def engine(int8_store: Path):
    engine = opened(int8_store, structured=True, prefill_chunk=16)
    yield engine
    engine.close()


def constrained(engine: Engine, constraint: Constraint, prompt: str = PROMPTS[0],
                **options: object) -> Generation:
    generation = engine.start(request(prompt, constraint=constraint, **{
        'max_tokens': 200, **options}))
    assert ''.join(generation) == generation.text
    return generation


def choices(*texts: str) -> Constraint:
    return Constraint(ConstraintKind.CHOICES, choices=texts)


def is_balanced(text: str) -> bool:
    while text:
        shorter = text.replace('()', '').replace('[]', '')
        if shorter == text:
            return False
        text = shorter
    return True


@pytest.mark.parametrize('sampling', SAMPLINGS)
def test_answers_are_what_is_asked_for(engine: Engine, sampling: SamplingParams) -> None:
    for prompt in PROMPTS:
        for constraint, is_right in (
                (JSON, lambda text: Draft202012Validator(SCHEMA).is_valid(json.loads(text))),
                (REGEX, re.compile(r'(ab|c){2,5}-[0-9]{3}').fullmatch),
                (GRAMMAR, is_balanced), (choices(*CHOICES), CHOICES.__contains__)):
            try:
                found = constrained(engine, constraint, prompt, sampling=sampling)
            except FlashLlmError as error:          # brackets may be opened for ever
                assert error.code is ErrorCode.CONSTRAINT_UNMET and constraint is GRAMMAR
                continue
            assert found.finish_reason is FinishReason.STOP
            assert is_right(found.text), found.text


@pytest.mark.parametrize('choice', CHOICES)
def test_any_text_can_be_a_choice(engine: Engine, choice: str) -> None:
    assert constrained(engine, choices(choice)).text == choice


def test_exactly_the_right_tokens_are_allowed(engine: Engine, int8_store: Path) -> None:
    """Against brute force: a token that keeps the text the beginning of a choice."""
    decoding = ConstrainedDecoding(
        load_tokenizer(FlashStore.open(int8_store)).vocabulary, 258, (257,))
    texts = ('abc', 'abd', 'b', 'ba')
    for choice in texts:
        rules = decoding.start(choices(*texts))
        for length in range(len(choice) + 1):
            begin = choice[:length].encode()
            right = {next_token(engine, text.encode()[length:][:1]) for text in texts
                     if text.encode().startswith(begin) and len(text) > length}
            if begin.decode() in texts:
                if not right:
                    assert rules.complete
                    break
                right.add(257)
            assert set(np.flatnonzero(rules.allowed()).tolist()) == right
            if length < len(choice):
                rules.take(next_token(engine, choice.encode()[length:length + 1]))


def next_token(engine: Engine, byte: bytes) -> int:
    return engine.tokenize(byte.decode())[-1]


@pytest.mark.parametrize('kind', KINDS)
def test_forced_tokens_share_a_pass(stores: dict[str, Path], kind: str) -> None:
    """Whatever the constraint forces is run at once."""
    forced = {'type': 'object', 'properties': {'long_name': {'enum': ['x', 'yy']},
                                               'end': {'const': 'z'}},
              'required': ['long_name', 'end'], 'additionalProperties': False}
    engine = opened(stores[kind], structured=True, mode=KINDS[kind], lookup_tokens=0)
    runs = counted_runs(engine)
    found = constrained(engine, Constraint(ConstraintKind.JSON_SCHEMA, json.dumps(forced)),
                        'x' * 10)
    engine.close()
    Draft202012Validator(forced).validate(json.loads(found.text))
    assert found.stats.forced_tokens == len(found.tokens) - 1
    # The prompt with the opening, and what stands behind the one token that was chosen.
    assert [run for run in runs if run] == [len(found.prompt_tokens) + len('{"long_name":"')]


def counted_runs(engine: Engine) -> list[int]:
    """How many tokens every pass of the model takes, from now on."""
    runs, forward = [], engine.model.forward

    def count(tokens, *arguments, **options):
        runs.append(len(tokens))
        return forward(tokens, *arguments, **options)

    engine.model.forward = count
    return runs


@pytest.mark.parametrize('mode', MODES)
@pytest.mark.parametrize('lookup_tokens', [0, 4])
@pytest.mark.parametrize('sampling', SAMPLINGS[:2])
def test_the_same_bytes_again(stores: dict[str, Path], tmp_path: Path, mode: str,
                              lookup_tokens: int, sampling: SamplingParams) -> None:
    """Whatever the window, and whether it is suspended for another answer or not."""
    numbers = Constraint(ConstraintKind.REGEX, r'(\{"item":[0-9]\},){6}')
    texts = set()
    for budget, every in ((60_000_000, 0), (60_000_000, 1), (54_000_000, 3)):
        engine = opened(stores[mode], budget=budget, structured=True, mode=mode, prefill_chunk=4,
                        lookup_tokens=lookup_tokens, session_folder=tmp_path)
        generation = engine.start(request('items:', constraint=numbers, sampling=sampling))
        generation = engine.start(request('items: ' + '{"item":7},' * 3, constraint=numbers,
                                          sampling=sampling, max_tokens=90))
        for count, _ in enumerate(generation):
            if every and count % every == 0 and generation.finish_reason is FinishReason.RUNNING:
                suspended = engine.suspend()
                constrained(engine, choices('other', 'answer'))
                engine.resume(suspended)
        assert re.fullmatch(r'(\{"item":[0-9]\},){6}', generation.text)
        texts.add((generation.text, tuple(generation.tokens), generation.stats.forced_tokens))
        engine.close()
    assert len(texts) == 1


def test_an_answer_that_cannot_be_finished(int8_store: Path) -> None:
    engine = opened(int8_store, structured=True, context_length=64)
    for options in ({'max_tokens': 5}, {'prompt': 'x' * 50}):
        generation = engine.start(request(**{
            'constraint': choices('a much longer answer than this'), **options}))
        pieces = []
        with assert_error(ErrorCode.CONSTRAINT_UNMET, 'used up'):
            for piece in generation:
                pieces.append(piece)
        assert ''.join(pieces) == generation.text
        assert 'a much longer answer than this'.startswith(generation.text)
        assert len(generation.text) == min(5, 64 - 51) or 'max_tokens' not in options
        assert generation.finish_reason is FinishReason.ERROR
    # What may end where it has to end is an answer.
    found = constrained(engine, Constraint(ConstraintKind.REGEX, '[ab]+'), max_tokens=7)
    assert re.fullmatch('[ab]+', found.text)
    engine.close()


def test_constraints_in_a_conversation(int8_store: Path, tmp_path: Path) -> None:
    """A turn that was complete is kept, one that could not be is as if it had never been."""
    texts = []
    for failing in (False, True):
        engine = opened(int8_store, structured=True, max_sessions=1, session_folder=tmp_path)
        turn = {'session_id': 'a', 'raw': False}
        constrained(engine, REGEX, 'One', **turn)
        if failing:
            with assert_error(ErrorCode.CONSTRAINT_UNMET):
                constrained(engine, choices('never complete'), 'Other', max_tokens=3, **turn)
        second = constrained(engine, JSON, 'Two', **turn)
        assert second.stats.cached_tokens > 0
        texts.append((second.prompt_tokens, second.text))
        Draft202012Validator(SCHEMA).validate(json.loads(second.text))
        engine.close()
    assert texts[0] == texts[1]


@pytest.mark.parametrize('pieces', [0, 3])
def test_a_deadline(engine: Engine, pieces: int) -> None:
    generation = engine.start(request(constraint=JSON))
    left = pieces
    with assert_error(ErrorCode.CONSTRAINT_UNMET, 'deadline'):
        for _ in generation:
            if not left:
                generation.stop(FinishReason.DEADLINE)
            left -= 1
    assert generation.finish_reason is FinishReason.DEADLINE
    generation = engine.start(request(constraint=JSON))
    for _ in generation:
        generation.stop(FinishReason.CANCELLED)         # whoever cancels wants no error
    assert generation.finish_reason is FinishReason.CANCELLED


@pytest.mark.parametrize(('kind', 'text', 'words'), [
    (ConstraintKind.JSON_SCHEMA, '', 'text is empty'),
    (ConstraintKind.JSON_SCHEMA, '{"type": ', 'no JSON'),
    (ConstraintKind.JSON_SCHEMA, '[1]', 'must be an object'),
    (ConstraintKind.JSON_SCHEMA, '{"type": "nothing"}', 'nothing'),
    (ConstraintKind.JSON_SCHEMA, '{"type": "array", "uniqueItems": true}', 'uniqueItems'),
    (ConstraintKind.JSON_SCHEMA, '{"minimun": 3}', 'is minimum meant'),
    (ConstraintKind.JSON_SCHEMA, '{"properties": {"a": {"maxLength": "3"}}}', 'whole number'),
    (ConstraintKind.JSON_SCHEMA, '{"pattern": "(?=a)"}', 'look-around'),
    (ConstraintKind.JSON_SCHEMA, '{"$ref": "file:///etc/passwd"}', 'not fetch'),
    (ConstraintKind.JSON_SCHEMA, '{"$ref": "#"}', 'refers to itself'),
    (ConstraintKind.JSON_SCHEMA, '{"type": "integer", "multipleOf": 10007}', 'multipleOf 10007'),
    (ConstraintKind.JSON_SCHEMA, '{"allOf": [{"multipleOf": 9973}, {"multipleOf": 0.9967}]}',
     'multipleOf 99400891'),
    (ConstraintKind.JSON_SCHEMA, '{"type": "integer", "multiple\\u004ff": 1e7, "minimum": 3}',
     '10000000'),
    (ConstraintKind.JSON_SCHEMA, f'{{"enum": ["{"x" * 70_000}"]}}', 'at most 65536'),
    (ConstraintKind.JSON_SCHEMA, '{"items":' * 5000 + '{}' + '}' * 5000, 'nested too'),
    (ConstraintKind.REGEX, ' ', 'text is empty'), (ConstraintKind.REGEX, '(a', 'unclosed'),
    (ConstraintKind.REGEX, '(?=a)b', 'look-around'), (ConstraintKind.REGEX, 'a\0', 'NUL'),
    (ConstraintKind.REGEX, 'a\ud800', 'UTF-8'),
    (ConstraintKind.REGEX, '(' * 20_000 + 'a' + ')' * 20_000, 'regex'),
    (ConstraintKind.GRAMMAR, 'start: %json {"type": "none"}', "type is 'none'"),
    (ConstraintKind.GRAMMAR, 'start: nosuch', 'nosuch'), (ConstraintKind.GRAMMAR, 'x', 'x'),
    (ConstraintKind.GRAMMAR, 'start: A\nA: /[ab]/ & "c"', 'no answer'),
    (ConstraintKind.GRAMMAR, 'start: ' + '(' * 9000 + '"a"' + ')' * 9000, 'nested'),
])
def test_refused_constraints(engine: Engine, kind: ConstraintKind, text: str, words: str) -> None:
    with assert_error(ErrorCode.INVALID_CONSTRAINT, words) as error:
        constrained(engine, Constraint(kind, text))
    assert len(str(error.value)) < 600
    assert constrained(engine, choices('still well')).text == 'still well'


@pytest.mark.parametrize(('fields', 'words'), [
    ({'kind': 9, 'text': 'x'}, 'kind is 9'), ({'kind': 3}, 'choices holds 0'),
    ({'kind': 3, 'choices': ('a', '')}, 'empty string'),
    ({'kind': 3, 'choices': ('a',) * 2001}, 'holds 2001'),
    ({'kind': 3, 'choices': ('x' * 70_000,)}, '70000 characters'),
    ({'kind': 3, 'text': 'a', 'choices': ('a',)}, 'text must be empty'),
    ({'kind': 2, 'text': 'a', 'choices': ('a',)}, 'choices must be empty'),
])
def test_refused_fields(fields: dict[str, object], words: str) -> None:
    with assert_error(ErrorCode.INVALID_CONSTRAINT, words):
        Constraint(**fields)


def test_an_answer_that_would_not_validate(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Were the grammar wrong, the independent judge is not."""
    monkeypatch.setattr(ConstraintTrial, 'outcome',
                        lambda self, constraint: Outcome(grammar='start: "[0.76]"'))
    schema = Constraint(ConstraintKind.JSON_SCHEMA, '{"items": {"maximum": 0.75}}')
    generation = engine.start(request(constraint=schema))
    with assert_error(ErrorCode.CONSTRAINT_UNMET, 'does not validate'):
        list(generation)
    assert generation.text == '[0.76]' and generation.finish_reason is FinishReason.ERROR


def test_stop_strings_and_constraints_exclude_each_other(engine: Engine) -> None:
    with assert_error(ErrorCode.INVALID_REQUEST, 'stop must be empty'):
        constrained(engine, JSON, stop=('}',))


def test_engines_without_constraints(int8_store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = opened(int8_store)
    assert all(row.name != 'structured answers' for row in engine.plan.rows)
    with assert_error(ErrorCode.INVALID_CONSTRAINT, 'structured is false'):
        constrained(engine, JSON)
    engine.close()
    monkeypatch.setitem(sys.modules, 'llguidance', None)
    with assert_error(ErrorCode.INVALID_PARAMETER, 'pip install'):
        opened(int8_store, structured=True)
