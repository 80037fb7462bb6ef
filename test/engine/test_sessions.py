"""Conversations: what is kept of them, what it costs, and what becomes of it."""

from pathlib import Path
import threading

from generation_cases import MODES, TURNS, answer, flash_uses, opened, request, say, talk
from greedy_reference import ReferenceModel
import numpy as np
import pytest

from flash_llm_ros.engine import (
    Constraint,
    ConstraintKind,
    Engine,
    FinishReason,
    Message,
)
from flash_llm_ros.store.errors import ErrorCode, FlashLlmError


@pytest.fixture
def engine(int8_store: Path, tmp_path: Path):
    """A small engine that keeps two sessions."""
    engine = opened(int8_store, session_folder=tmp_path, max_sessions=2, prefill_chunk=16)
    yield engine
    engine.close()


def refusal(engine: Engine, prompt: str = 'x', **options: object) -> FlashLlmError:
    with pytest.raises(FlashLlmError) as error:
        engine.start(request(prompt, **options))
    return error.value


def spelled(turns: list[tuple[str, list[int]]], last: str) -> list[int]:
    """The tokens of a conversation by hand: one a byte but for 256 and 257."""
    alphabet = [*range(33, 127), *range(161, 173), *range(174, 256)]
    ranks = {byte: rank for rank, byte in enumerate(
        [*alphabet, *(byte for byte in range(256) if byte not in alphabet)])}

    def text(letters: str) -> list[int]:
        return [ranks[byte] for byte in letters.encode()]

    tokens: list[int] = []
    for prompt, reply in [*turns, (last, None)]:
        tokens += [256, *text(f'user\n{prompt}'), 257, *text('\n'), 256, *text('assistant\n')]
        if reply is not None:
            tokens += [*(reply[:-1] if reply[-1] == 257 else reply), 257, *text('\n')]
    return tokens


def test_a_conversation_is_the_one_of_transformers(fp16_store: Path, tmp_path: Path) -> None:
    """The whole of it, in one go, through the reference: the same answers to the last token."""
    engine = opened(fp16_store, session_folder=tmp_path)
    reference = ReferenceModel(fp16_store.parent / 'checkpoint')
    turns: list[tuple[str, list[int]]] = []
    for turn in TURNS:
        whole = spelled(turns, turn)
        found = say(engine, 'a', turn)
        assert found.prompt_tokens == whole
        assert found.tokens == reference.greedy(whole, 12)
        turns.append((turn, found.tokens))
    engine.close()


@pytest.mark.parametrize('mode', MODES)
def test_only_what_is_new_is_computed(stores: dict[str, Path], tmp_path: Path, mode: str) -> None:
    engine = opened(stores[mode], mode=mode, session_folder=tmp_path, lookup_tokens=0)
    known = 0
    for turn in TURNS:
        found = say(engine, 'a', turn)
        stats = found.stats
        assert stats.cached_tokens == known
        assert stats.prompt_tokens == len(found.prompt_tokens)
        if mode == 'exact':
            assert stats.window_hits + stats.window_misses == flash_uses(
                stores[mode], found.prompt_tokens[known:], found.tokens, 64)
        known = stats.prompt_tokens + stats.generated_tokens - 1
    assert say(engine, 'b', TURNS[0]).stats.cached_tokens == 0
    assert answer(engine, TURNS[0]).stats.cached_tokens == 0
    engine.close()


def test_an_end_token_is_not_said_twice(int8_store: Path, engine: Engine) -> None:
    """The template ends an answer, whether or not the model has."""
    end = engine.model.spec.end_tokens
    whole = say(engine, 'a', TURNS[0])
    engine.reset_session('')
    object.__setattr__(engine.model.spec, 'end_tokens', (whole.tokens[4],))
    try:
        first = say(engine, 'a', TURNS[0])
        assert first.finish_reason is FinishReason.STOP and len(first.tokens) <= 5
        second = say(engine, 'a', TURNS[1])
    finally:
        object.__setattr__(engine.model.spec, 'end_tokens', end)
    assert second.prompt_tokens == spelled([(TURNS[0], [*first.tokens[:-1], 257])], TURNS[1])


def test_raw_turns_are_appended_as_they_are(engine: Engine) -> None:
    first = say(engine, 'a', 'abc', raw=True)
    second = say(engine, 'a', 'def', raw=True)
    assert second.prompt_tokens == [*first.prompt_tokens, *first.tokens, *engine.tokenize('def')]


@pytest.mark.parametrize('reason', [FinishReason.CANCELLED, FinishReason.DEADLINE])
@pytest.mark.parametrize('pieces', [0, 1, 5])
def test_a_turn_that_is_stopped_never_was(engine: Engine, reason: FinishReason,
                                          pieces: int) -> None:
    expected = talk(engine, 'whole')
    say(engine, 'a', TURNS[0])
    for _ in range(2):
        generation = engine.start(request('Never mind', session_id='a', raw=False))
        for count, _piece in enumerate(generation):
            if count == pieces:
                generation.stop(reason)
    assert [say(engine, 'a', turn).tokens for turn in TURNS[1:]] == expected[1:]
    generation = engine.start(request('given up', session_id='new', raw=False))
    answer(engine, 'x')
    assert engine.sessions == 1     # 'whole' gave way; the new one came to nothing


def test_a_turn_that_met_a_fault_never_was(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = talk(engine, 'whole')
    say(engine, 'a', TURNS[0])
    forward, count = engine.model.forward, 0

    def faulty(*arguments: object, **options: object) -> None:
        nonlocal count
        count += 1
        if count == 4:
            raise FlashLlmError(ErrorCode.READ_FAILED, 'planted')
        forward(*arguments, **options)

    monkeypatch.setattr(engine.model, 'forward', faulty)
    with pytest.raises(FlashLlmError, match='planted'):
        say(engine, 'a', 'Never mind')
    monkeypatch.undo()
    assert [say(engine, 'a', turn).tokens for turn in TURNS[1:]] == expected[1:]


def test_the_one_used_longest_ago_gives_way(engine: Engine) -> None:
    for name in ('a', 'b', 'a', 'c'):
        say(engine, name, TURNS[0])
    assert engine.sessions == 2
    assert say(engine, 'a', TURNS[1]).stats.cached_tokens > 0
    assert refusal_of_reset(engine, 'b').code is ErrorCode.NO_SUCH_SESSION
    assert say(engine, 'b', TURNS[1]).stats.cached_tokens == 0      # begins anew


def refusal_of_reset(engine: Engine, name: str) -> FlashLlmError:
    with pytest.raises(FlashLlmError) as error:
        engine.reset_session(name)
    assert repr(name) in str(error.value)
    return error.value


def test_reset(engine: Engine) -> None:
    first = say(engine, 'a', TURNS[0])
    say(engine, 'b', TURNS[0])
    assert engine.reset_session('a') == 1 and engine.sessions == 1
    again = say(engine, 'a', TURNS[0])
    assert (again.tokens, again.stats.cached_tokens) == (first.tokens, 0)
    assert engine.reset_session('') == 2 and engine.sessions == 0
    assert engine.reset_session('') == 0
    assert refusal_of_reset(engine, 'a').code is ErrorCode.NO_SUCH_SESSION


def test_reset_while_it_answers(engine: Engine) -> None:
    """From another thread: the answer goes on, and is not remembered."""
    expected = say(engine, 'a', TURNS[0]).text
    engine.reset_session('a')
    generation = engine.start(request(TURNS[0], session_id='a', raw=False, max_tokens=12))
    for count, _ in enumerate(generation):
        if count == 3:
            thread = threading.Thread(target=engine.reset_session, args=('a',))
            thread.start()
            thread.join()
    assert generation.text == expected and engine.sessions == 0
    assert say(engine, 'a', TURNS[0]).stats.cached_tokens == 0


def test_a_context_that_is_used_up(int8_store: Path, tmp_path: Path) -> None:
    """The answer ends; the next turn is refused; the conversation stays until it is reset."""
    engine = opened(int8_store, session_folder=tmp_path, context_length=96)
    first = say(engine, 'a', 'x' * 40, max_tokens=1000)
    assert first.finish_reason is FinishReason.LENGTH
    assert first.stats.prompt_tokens + first.stats.generated_tokens == 96
    for _ in range(2):
        error = refusal(engine, 'more', session_id='a', raw=False)
        assert error.code is ErrorCode.PROMPT_TOO_LONG and "session 'a'" in str(error)
    engine.reset_session('a')
    say(engine, 'a', 'more')
    engine.close()


def test_the_oldest_turns_are_dropped(fp16_store: Path, tmp_path: Path) -> None:
    """What goes on is a conversation of the turns that are kept, and of them alone."""
    context = 256
    engine = opened(fp16_store, session_folder=tmp_path, context_length=context)
    reference = ReferenceModel(fp16_store.parent / 'checkpoint')
    turns: list[tuple[str, list[int]]] = []
    dropped = []
    for number in range(14):
        turn = f'Turn {number} ' + 'again ' * (number % 4)
        if number == 9:     # a turn that never was leaves the conversation as it is
            given_up = engine.start(request(turn * 3, session_id='a', raw=False,
                                            drop_oldest_turns=True))
            next(iter(given_up))
            given_up.stop(FinishReason.CANCELLED)
        whole = spelled(turns, turn)
        found = say(engine, 'a', turn, drop_oldest_turns=True)
        if len(whole) + 12 > context:
            first = next(k for k in range(1, len(turns) + 1)
                         if len(spelled(turns[k:], turn)) <= context // 2)
            dropped.append(len(whole) - len(spelled(turns[first:], turn)))
            turns, whole = turns[first:], spelled(turns[first:], turn)
            assert (found.stats.dropped_tokens, found.stats.cached_tokens) == (dropped[-1], 0)
        else:
            assert found.stats.dropped_tokens == 0
        assert found.prompt_tokens == whole
        assert found.tokens == reference.greedy(whole, 12)
        turns.append((turn, found.tokens))
    assert len(dropped) > 2
    engine.close()


def test_what_cannot_be_dropped(int8_store: Path, tmp_path: Path) -> None:
    """The system prompt stays, a tool's answer stays with the turn before it, one turn is whole."""
    engine = opened(int8_store, session_folder=tmp_path, context_length=256)
    options = {'drop_oldest_turns': True, 'session_id': 'a', 'max_tokens': 40}
    begun = answer(engine, **messages(('system', 'Be kind'), ('user', 'x' * 60)), **options)
    answer(engine, **messages(('tool', '{"x": 1}')), **options)
    found = answer(engine, **messages(('user', 'y' * 60)), **options)
    alone = answer(engine, **messages(('system', 'Be kind'), ('user', 'y' * 60)), max_tokens=40)
    assert (found.prompt_tokens, found.tokens) == (alone.prompt_tokens, alone.tokens)
    assert found.stats.dropped_tokens > len(begun.prompt_tokens) and begun.stats.dropped_tokens == 0
    error = refusal(engine, 'z' * 300, raw=False, session_id='a', drop_oldest_turns=True)
    assert error.code is ErrorCode.PROMPT_TOO_LONG
    error = refusal(engine, 'z', raw=False, drop_oldest_turns=True)
    assert error.code is ErrorCode.INVALID_REQUEST and 'session_id is empty' in str(error)
    first = say(engine, 'raw', 'a' * 100, raw=True)
    last = say(engine, 'raw', 'b' * 150, raw=True, drop_oldest_turns=True)
    assert last.prompt_tokens == engine.tokenize('b' * 150)
    assert last.stats.dropped_tokens == len(first.prompt_tokens) + len(first.tokens)
    engine.close()


def test_suspended_turns(engine: Engine) -> None:
    expected = talk(engine, 'whole')
    engine.reset_session('')
    say(engine, 'a', TURNS[0])
    generation = engine.start(request(TURNS[1], session_id='a', raw=False, max_tokens=12))
    pieces = iter(generation)
    for _ in range(6):
        next(pieces)
    suspended = engine.suspend()
    busy = refusal(engine, session_id='a')
    assert busy.code is ErrorCode.TOO_MANY_SESSIONS and "'a' has a request under way" in str(busy)
    assert talk(engine, 'b') == expected
    other = engine.start(request(TURNS[1], session_id='b', raw=False))
    next(iter(other))
    second = engine.suspend()
    full = refusal(engine, session_id='c')
    assert full.code is ErrorCode.TOO_MANY_SESSIONS and 'max_sessions is 2' in str(full)
    engine.discard(second)
    engine.resume(suspended)
    for _ in pieces:
        pass
    assert generation.tokens == expected[1]
    assert say(engine, 'a', TURNS[2]).tokens == expected[2]
    assert say(engine, 'b', 'more').stats.cached_tokens > 0


@pytest.mark.parametrize('reset', [False, True])
def test_a_suspended_turn_that_is_discarded(engine: Engine, reset: bool) -> None:
    expected = talk(engine, 'whole')
    say(engine, 'a', TURNS[0])
    generation = engine.start(request('Never mind', session_id='a', raw=False))
    pieces = iter(generation)
    for _ in range(6):
        next(pieces)
    suspended = engine.suspend()
    if reset:
        engine.reset_session('a')
    answer(engine, 'something else')
    engine.discard(suspended)
    found = say(engine, 'a', TURNS[1] if not reset else TURNS[0])
    assert found.tokens == expected[0 if reset else 1]
    assert (found.stats.cached_tokens > 0) != reset


def test_without_sessions(int8_store: Path, tmp_path: Path) -> None:
    engine = opened(int8_store, session_folder=tmp_path, max_sessions=0)
    error = refusal(engine, session_id='a')
    assert error.code is ErrorCode.TOO_MANY_SESSIONS and 'max_sessions is 0' in str(error)
    answer(engine, 'x')
    assert 'sessions' not in [row.name for row in engine.plan.rows]
    engine.close()


def messages(*turns: tuple[str, str]) -> dict[str, object]:
    return {'prompt': '', 'raw': False,
            'messages': tuple(Message(role, content) for role, content in turns)}


@pytest.mark.parametrize(('wrong', 'code', 'words'), [
    ({**messages(('user', 'x')), 'prompt': 'x'}, ErrorCode.INVALID_REQUEST, 'both given'),
    ({**messages(('user', 'x')), 'raw': True}, ErrorCode.INVALID_REQUEST, 'raw is true'),
    (messages(('robot', 'x')), ErrorCode.INVALID_REQUEST, "messages[0].role is 'robot'"),
    (messages(('user', 'x'), ('assistant', ' '), ('user', 'y')), ErrorCode.EMPTY_PROMPT,
     'messages[1].content is empty'),
    (messages(('user', 'x'), ('assistant', 'y')), ErrorCode.INVALID_REQUEST,
     'messages[1].role is assistant'),
    (messages(('user', 'a\0')), ErrorCode.INVALID_TEXT, 'messages[0].content holds a NUL'),
    (messages(*[('user', 'x')] * 600), ErrorCode.PROMPT_TOO_LONG, '600 entries'),
    ({**messages(('system', 'x'), ('user', 'y')), 'system_prompt': 'z'},
     ErrorCode.INVALID_REQUEST, 'system_prompt and messages[0]'),
    ({'session_id': 'x' * 300}, ErrorCode.INVALID_REQUEST, 'session_id has 300 characters'),
    ({'session_id': 'a\0'}, ErrorCode.INVALID_TEXT, 'session_id holds a NUL'),
])
def test_refused_conversations(engine: Engine, wrong: dict[str, object], code: ErrorCode,
                               words: str) -> None:
    error = refusal(engine, **wrong)
    assert error.code is code and words in str(error)


def test_messages_are_the_conversation_so_far(engine: Engine) -> None:
    first = answer(engine, TURNS[0], raw=False, max_tokens=12)
    said = ''.join(map(chr, (ord(c) for c in first.text)))
    whole = answer(engine, **messages(('user', TURNS[0]), ('assistant', said), ('user', TURNS[1])),
                   max_tokens=12)
    assert whole.prompt_tokens == spelled([(TURNS[0], [*first.tokens, 257])], TURNS[1])
    begun = answer(engine, **messages(('system', 'Be kind'), ('user', TURNS[0])), session_id='a')
    same = answer(engine, TURNS[0], raw=False, system_prompt='Be kind')
    assert begun.tokens == same.tokens
    more = answer(engine, **messages(('tool', '{"x": 1}')), session_id='a')
    assert more.stats.cached_tokens == len(begun.prompt_tokens) + len(begun.tokens) - 1


def test_a_session_keeps_its_system_prompt(engine: Engine) -> None:
    say(engine, 'a', TURNS[0], system_prompt='Be kind')
    say(engine, 'a', TURNS[1])
    say(engine, 'a', TURNS[1], system_prompt='Be kind')
    say(engine, 'a', TURNS[1], system_prompt='The new one of the node', keep_system_prompt=True)
    error = refusal(engine, session_id='a', raw=False, system_prompt='Be rude')
    assert error.code is ErrorCode.INVALID_REQUEST and "session 'a'" in str(error)
    for turns in ((('system', 'Be rude'), ('user', 'x')),
                  (('user', 'x'), ('assistant', 'y'), ('system', 'Be rude'), ('user', 'z'))):
        error = refusal(engine, **messages(*turns), session_id='a')
        assert error.code is ErrorCode.INVALID_REQUEST and 'of the role system' in str(error)


def test_a_session_may_repeat_its_system_prompt(engine: Engine) -> None:
    """In either field; the conversation is the same as without."""
    begin = messages(('system', 'Be kind'), ('user', TURNS[0]))
    answer(engine, **begin, session_id='a')
    answer(engine, **begin, session_id='b')
    plain = answer(engine, **messages(('user', TURNS[1])), session_id='a')
    again = answer(engine, **messages(('system', 'Be kind'), ('user', TURNS[1])), session_id='b')
    assert again.prompt_tokens == plain.prompt_tokens and again.tokens == plain.tokens
    error = refusal(engine, session_id='a', raw=False, system_prompt='Be rude')
    assert 'system_prompt is not the one' in str(error)


@pytest.mark.parametrize('every', [1, 2])
def test_guessed_and_forced_tokens_are_remembered_rightly(int8_store: Path, tmp_path: Path,
                                                          every: int) -> None:
    """Rows of wrong guesses and of forced tokens not yet computed must not pass for the answer's.

    The reference computes each conversation as a whole.
    """
    engine = opened(int8_store, session_folder=tmp_path, structured=True)
    for choices in (('stop', 'go'), ('abcabcabcabc', 'abcabcabcabd', 'abd')):
        limit = Constraint(ConstraintKind.CHOICES, choices=choices)
        prompt = 'abcabcabcabcabc' * every
        first = say(engine, 'a', prompt, constraint=limit, max_tokens=40)
        assert first.text in choices
        found = say(engine, 'a', prompt, constraint=limit, max_tokens=40)
        assert found.stats.cached_tokens < len(found.prompt_tokens)
        cached = np.stack(engine.model.attention._cache)
        tokens = np.array(found.prompt_tokens)
        for start in range(0, len(tokens), engine.model.chunk):
            engine.model.forward(tokens[start:start + engine.model.chunk], start, dense=True)
        expected = np.stack(engine.model.attention._cache)
        error = np.abs(cached.astype(np.float32) - expected).max()
        assert error < 0.1 * expected.astype(np.float32).std()
        engine.reset_session('')
    engine.close()
