"""Requests that are refused, stopped, given up, or meet a fault; and an engine that is closed."""

import gc
from pathlib import Path
import shutil
import threading

from generation_cases import KINDS, PROMPTS, answer, opened, opened_tightly, request
import pytest
from refusals import assert_error
from tiny_checkpoint import converted, write_checkpoint
from tokenizers import AddedToken, Tokenizer

from bench.faults.damage import flip_bit
from flash_llm_ros.engine import Engine, EngineConfig, FinishReason, GenerationRequest
from flash_llm_ros.engine.memory.process_memory import resident_bytes
from flash_llm_ros.store.errors import ErrorCode, FlashLlmError


@pytest.fixture
def engine(int8_store: Path):
    """A small engine with a context of 128 tokens."""
    engine = opened(int8_store, context_length=128, prefill_chunk=4)
    yield engine
    engine.close()


@pytest.fixture(params=KINDS)
def any_engine(request: pytest.FixtureRequest, stores: dict[str, Path]):
    """The same of every kind of block."""
    engine = opened(stores[request.param], mode=KINDS[request.param], context_length=128,
                    prefill_chunk=4)
    yield engine
    engine.close()


@pytest.mark.parametrize(('wrong', 'code', 'words'), [
    ({'prompt': ''}, ErrorCode.EMPTY_PROMPT, 'prompt is empty'),
    ({'prompt': ' \n\t'}, ErrorCode.EMPTY_PROMPT, 'prompt is empty'),
    ({'prompt': 'a\0'}, ErrorCode.INVALID_TEXT, 'prompt holds a NUL'),
    ({'system_prompt': 'a\0'}, ErrorCode.INVALID_TEXT, 'system_prompt holds a NUL'),
    ({'prompt': 'x' * 128}, ErrorCode.PROMPT_TOO_LONG, '128 tokens'),
    ({'prompt': 'x' * 120, 'raw': False}, ErrorCode.PROMPT_TOO_LONG, 'with its template'),
    ({'prompt': 'x' * 2 ** 20}, ErrorCode.PROMPT_TOO_LONG, '1048576 characters'),
    ({'max_tokens': 0}, ErrorCode.INVALID_REQUEST, 'max_tokens is 0'),
    ({'max_tokens': 2.5}, ErrorCode.INVALID_REQUEST, 'max_tokens is 2.5'),
    ({'stop': ('a' * 4000, 'b' * 97)}, ErrorCode.INVALID_REQUEST, 'stop has 4097 characters'),
    ({'stop': ('a', '')}, ErrorCode.INVALID_REQUEST, 'stop holds an empty string'),
])
def test_refused_requests(engine: Engine, wrong: dict[str, object], code: ErrorCode,
                          words: str) -> None:
    with assert_error(code, words):
        engine.start(request(**wrong))
    assert answer(engine).finish_reason is FinishReason.LENGTH


@pytest.mark.parametrize(('prompt', 'code'), [('\x01', ErrorCode.EMPTY_PROMPT),
                                              ('a<|extra|>b', ErrorCode.INVALID_TEXT)])
def test_prompts_the_model_has_no_tokens_for(tmp_path: Path, prompt: str, code: ErrorCode) -> None:
    """Vocabularies without some bytes exist, and ones with tokens beyond the embedding's rows."""
    checkpoint = write_checkpoint(tmp_path / 'checkpoint')
    tokenizer = Tokenizer.from_file(str(checkpoint / 'tokenizer.json'))
    tokenizer.add_special_tokens([AddedToken('<|extra|>', special=True)])
    definition = tokenizer.to_str().replace('"\\u0101":', '"never":').replace('"ā":', '"never":')
    (checkpoint / 'tokenizer.json').write_text(definition)
    store = converted(checkpoint, tmp_path / 'store', calibrate=False).path
    engine = opened(store)
    with assert_error(code):
        engine.start(request(prompt))
    answer(engine, 'ab')
    engine.close()


@pytest.mark.parametrize(('options', 'words'), [
    ({'mode': 'turbo'}, "mode is 'turbo'"), ({'context_length': 1}, 'context_length is 1'),
    ({'context_length': 5000}, 'at most 4096'), ({'context_length': True}, 'context_length'),
    ({'prefill_chunk': -1}, 'prefill_chunk is -1'), ({'threads': 0}, 'threads is 0'),
    ({'reads_in_flight': -1}, 'reads_in_flight is -1'),
    ({'reads_in_flight': 257}, 'at most 256'), ({'reader': 'x'}, "reader is 'x'"),
    ({'budget': 0}, 'dram_budget is 0'),
    ({'budget': 1e9}, 'dram_budget'), ({'threads': 257}, 'threads is 257'),
    ({'mode': 'gated'}, 'mode is gated, but the model uses every neuron'),
])
def test_refused_settings(int8_store: Path, options: dict[str, object], words: str) -> None:
    with assert_error(ErrorCode.INVALID_PARAMETER, words):
        opened(int8_store, **options)


def test_mode_gated_needs_a_calibration(tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path / 'checkpoint', hidden_act='relu')
    store = converted(checkpoint, tmp_path / 'store', calibrate=False).path
    with assert_error(ErrorCode.INVALID_PARAMETER, 'without calibration; it must be auto'):
        opened(store, mode='gated')


def test_the_plan_keeps_to_the_budget(stores: dict[str, Path]) -> None:
    for kind, mode in KINDS.items():
        engine = opened_tightly(stores[kind], mode=mode)
        plan, slots = engine.plan, engine.model.window.plan.slots
        assert plan.planned <= plan.budget == engine.config.dram_budget
        assert plan.window_bytes == slots * engine.geometry.group_bytes
        assert sum(row.bytes for row in plan.rows) == plan.planned
        engine.close()


def test_a_small_model_takes_no_more_than_it_can_use(int8_store: Path) -> None:
    engine = opened(int8_store, budget=10 ** 12)
    assert engine.plan.window_bytes < 2 * engine.model_bytes + 2_000_000
    engine.close()


@pytest.mark.parametrize('reason', [FinishReason.CANCELLED, FinishReason.DEADLINE])
def test_stopped_from_another_thread(any_engine: Engine, reason: FinishReason) -> None:
    whole = answer(any_engine, max_tokens=100).text
    generation = any_engine.start(request(max_tokens=100))
    pieces = []
    for piece in generation:
        pieces.append(piece)
        if len(''.join(pieces)) == 7 and generation.phase == 'decode':
            thread = threading.Thread(target=generation.stop, args=(reason,))
            thread.start()
            thread.join()
    assert generation.finish_reason is reason
    assert ''.join(pieces) == generation.text == whole[:7]
    assert generation.stats.generated_tokens == len(generation.tokens) == 7
    assert answer(any_engine, max_tokens=100).text == whole


def test_stopped_while_a_stop_string_was_awaited(engine: Engine) -> None:
    """What was held back is a part of the answer so far."""
    text = answer(engine).text
    generation = engine.start(request(stop=(text[4:7] + 'never',)))
    pieces = []
    for piece in generation:
        pieces.append(piece)
        if len(generation.tokens) == 6:
            generation.stop(FinishReason.CANCELLED)
    assert ''.join(pieces) == generation.text == text[:6]


def test_stopped_in_the_prompt(any_engine: Engine) -> None:
    expected = answer(any_engine).text
    generation = any_engine.start(request('x' * 100))
    pieces = 0
    for _ in generation:
        pieces += 1
        if pieces == 3:
            assert generation.phase == 'prefill'
            generation.stop(FinishReason.DEADLINE)
    assert pieces == 3 and generation.finish_reason is FinishReason.DEADLINE
    assert generation.tokens == [] and generation.text == ''
    assert answer(any_engine).text == expected


def test_stopped_before_it_began(engine: Engine) -> None:
    generation = engine.start(request())
    generation.stop(FinishReason.CANCELLED)
    before = engine.stats()
    assert ''.join(generation) == ''
    assert generation.finish_reason is FinishReason.CANCELLED
    assert engine.stats()['hits'] == before['hits']


def test_stopped_after_its_end(engine: Engine) -> None:
    generation = answer(engine)
    generation.stop(FinishReason.CANCELLED)
    assert generation.finish_reason is FinishReason.LENGTH


def test_a_second_request_gives_up_the_first(engine: Engine) -> None:
    """They share one KV cache: the first must end, never go on with the other's keys."""
    alone = answer(engine, PROMPTS[3], max_tokens=5).text
    first = engine.start(request(max_tokens=50))
    pieces = iter(first)
    shown = [next(pieces) for _ in range(6)]
    second = engine.start(request(PROMPTS[3], max_tokens=5))
    assert ''.join(pieces) == '' and first.finish_reason is FinishReason.CANCELLED
    assert first.text == ''.join(shown)
    assert ''.join(second) == alone and second.finish_reason is FinishReason.LENGTH


def test_a_reader_that_goes_away(engine: Engine) -> None:
    generation = engine.start(request())
    for _ in generation:
        if generation.tokens:
            break
    gc.collect()
    assert generation.finish_reason is FinishReason.CANCELLED
    ended = engine.start(request(max_tokens=3))
    for _ in ended:
        if ended.finish_reason is not FinishReason.RUNNING:
            break
    gc.collect()
    assert ended.finish_reason is FinishReason.LENGTH


def flip_every_layer(neurons: Path, bytes_of_layers: int) -> None:
    for at in range(100, bytes_of_layers, 4096):
        flip_bit(neurons, at)


@pytest.mark.parametrize('kind', KINDS)
def test_damage_in_the_middle_of_an_answer(tmp_path: Path, stores: dict[str, Path],
                                           kind: str) -> None:
    """Never silent text: the request fails, and the engine answers once the file is whole."""
    if kind != 'exact':
        store = Path(shutil.copytree(stores[kind], tmp_path / 'store'))
    else:
        checkpoint = write_checkpoint(tmp_path / 'checkpoint', intermediate_size=1024)
        store = converted(checkpoint, tmp_path / 'store').path
    shutil.copy(store / 'neurons.bin', tmp_path / 'whole')
    engine = opened_tightly(store, mode=KINDS[kind])
    expected = answer(engine).text
    generation = engine.start(request())
    pieces = iter(generation)
    shown = [next(pieces) for _ in range(5)]
    with (tmp_path / 'whole').open('rb') as whole:
        size = len(whole.read())
    flip_every_layer(store / 'neurons.bin', size)
    with assert_error(ErrorCode.CHECKSUM_MISMATCH, 'group'):
        for piece in pieces:
            shown.append(piece)
    assert generation.finish_reason is FinishReason.ERROR
    assert expected.startswith(''.join(shown)) and generation.text == ''.join(shown)
    with pytest.raises(FlashLlmError):
        answer(engine)
    flip_every_layer(store / 'neurons.bin', size)
    assert (store / 'neurons.bin').read_bytes() == (tmp_path / 'whole').read_bytes()
    assert answer(engine).text == expected
    engine.close()


def test_closed_engine(planted_store: Path) -> None:
    engine = opened(planted_store, mode='gated')
    generation = engine.start(request())
    next(iter(generation))
    engine.close()
    engine.close()
    with pytest.raises(RuntimeError, match='closed'):
        engine.start(GenerationRequest('hello'))


def descriptors_and_threads() -> tuple[int, int]:
    return len(list(Path('/proc/self/fd').iterdir())), len(list(Path('/proc/self/task').iterdir()))


def test_open_and_close_leak_nothing(planted_store: Path) -> None:
    """Each engine takes some 15 MB: kept, eight of them would be seen."""
    def one_life() -> None:
        engine = Engine.open(EngineConfig(planted_store, 100_000_000, 'gated', context_length=4096,
                                          prefill_chunk=512))
        taken.append(engine.plan.planned)
        answer(engine, max_tokens=3)
        engine.close()

    taken: list[int] = []
    one_life()
    one_life()
    gc.collect()
    before, memory = descriptors_and_threads(), resident_bytes()
    for _ in range(8):
        one_life()
    gc.collect()
    assert descriptors_and_threads() == before
    assert resident_bytes() - memory < sum(taken) / len(taken)


@pytest.mark.parametrize('failure', [MemoryError(), OSError(12, 'Cannot allocate memory')])
def test_more_than_the_system_gives(int8_store: Path, monkeypatch: pytest.MonkeyPatch,
                                    failure: Exception) -> None:
    def refuse(*arguments: object) -> None:
        raise failure

    monkeypatch.setattr('flash_llm_ros.engine.engine.Window', refuse)
    with assert_error(ErrorCode.INVALID_PARAMETER, 'dram_budget is 60000000'):
        opened(int8_store)
