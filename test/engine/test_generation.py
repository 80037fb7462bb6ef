"""Answers of the whole engine: the right tokens, whatever the budget or the chunk."""

from pathlib import Path

from generation_cases import KINDS, MODES, PROMPTS, answer, flash_uses, opened, opened_tightly
from greedy_reference import ReferenceModel
import pytest
from tiny_checkpoint import converted, write_checkpoint

from flash_llm_ros.engine import FinishReason, SamplingParams


@pytest.fixture(scope='module')
def reference(fp16_store: Path) -> ReferenceModel:
    return ReferenceModel(fp16_store.parent / 'checkpoint')


@pytest.fixture(scope='module')
def wide_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Wide enough that a small window does not hold it."""
    folder = tmp_path_factory.mktemp('wide')
    checkpoint = write_checkpoint(folder / 'checkpoint', intermediate_size=2048)
    return converted(checkpoint, folder / 'wide.store', most_tokens=256).path


def test_exact_tokens_are_those_of_transformers(fp16_store: Path,
                                                reference: ReferenceModel) -> None:
    engine = opened(fp16_store, kv_cache='int16')
    for prompt in PROMPTS[:3]:
        expected = reference.greedy(engine.tokenize(prompt), 24)
        assert answer(engine, prompt, max_tokens=24).tokens == expected
    engine.close()


@pytest.mark.parametrize('mode', MODES)
def test_the_budget_does_not_change_the_answer(wide_store: Path, planted_store: Path,
                                               mode: str) -> None:
    answers = []
    for make in (opened_tightly, opened):
        engine = make(wide_store if mode == 'exact' else planted_store, mode=mode)
        answers.append([(found.tokens, found.text, found.stats.active_fraction) for found in (
            answer(engine, prompt, sampling=SamplingParams(temperature=0.9, seed=3),
                   max_tokens=60) for prompt in PROMPTS[1:3])])
        misses = engine.stats()['misses']
        engine.close()
        assert misses > 0
    assert answers[0] == answers[1]


def test_the_chunk_does_not_change_the_answer(int8_store: Path) -> None:
    found = []
    for chunk in (1, 7, 64):
        engine = opened(int8_store, prefill_chunk=chunk)
        found.append([answer(engine, prompt, max_tokens=12).tokens for prompt in PROMPTS])
        engine.close()
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize('kind', KINDS)
def test_the_seed_decides(stores: dict[str, Path], kind: str) -> None:
    def text(seed: int) -> str:
        return answer(engine, sampling=SamplingParams(temperature=1.2, seed=seed)).text

    engine = opened(stores[kind], mode=KINDS[kind])
    first = text(7)
    assert len({first, text(1), text(2)}) == 3
    assert text(7) == first
    engine.close()
    engine = opened(stores[kind], mode=KINDS[kind])
    assert text(7) == first
    engine.close()


def test_the_chat_template_and_the_system_prompt_are_used(int8_store: Path) -> None:
    engine = opened(int8_store)
    templated = answer(engine, 'Hi', system_prompt='Be kind', raw=False)
    spelled = answer(engine, '<|im_start|>system\nBe kind<|im_end|>\n<|im_start|>user\nHi'
                             '<|im_end|>\n<|im_start|>assistant\n')
    assert templated.tokens == spelled.tokens
    assert templated.stats.prompt_tokens == spelled.stats.prompt_tokens == 4 + len(
        'system\nBe kind\nuser\nHi\nassistant\n') + 1
    engine.close()


def test_exact_mode_counts_every_group(int8_store: Path) -> None:
    engine = opened_tightly(int8_store, prefill_chunk=16, lookup_tokens=0)
    before = engine.stats()
    found = answer(engine, PROMPTS[1])
    used = {name: count - before[name] for name, count in engine.stats().items()}
    stats = found.stats
    assert stats.generated_tokens == len(found.tokens) == 30
    assert stats.prompt_tokens == len(engine.tokenize(PROMPTS[1]))
    assert stats.window_hits + stats.window_misses == flash_uses(
        int8_store, engine.tokenize(PROMPTS[1]), found.tokens, 16)
    assert (stats.window_hits, stats.window_misses) == (used['hits'], used['misses'])
    # The core goes on reading ahead after the last token.
    assert 0 < stats.flash_bytes <= used['flash_bytes']
    assert 0 < stats.flash_reads <= used['flash_reads']
    assert stats.active_fraction == 1.0
    assert stats.time_to_first_token > 0 and stats.tokens_per_second > 0
    engine.close()


def process_reads() -> int:
    """Bytes this process has had fetched from block devices."""
    fields = dict(line.split(': ') for line in Path('/proc/self/io').read_text().splitlines())
    return int(fields['read_bytes'])


@pytest.mark.parametrize('mode', MODES)
def test_the_kernel_counts_the_same_bytes(wide_store: Path, planted_store: Path, mode: str) -> None:
    engine = opened_tightly(wide_store if mode == 'exact' else planted_store, mode=mode)
    if not engine.model.window.core.direct:
        pytest.skip('the file system of the temporary folder has no direct I/O')
    before, counted = process_reads(), engine.stats()['flash_bytes']
    stats = answer(engine, max_tokens=12).stats
    counted, fetched = engine.stats()['flash_bytes'] - counted, process_reads() - before
    # The core reads ahead: parts of the ring may be fetched that are not counted yet.
    ring = engine.model.window.plan.chunk_groups * engine.model.window.plan.chunks * (
        engine.geometry.group_bytes)
    assert 0 < stats.flash_bytes <= counted <= stats.flash_bytes + ring
    assert counted <= fetched <= counted + ring
    engine.close()


def test_length_and_context(int8_store: Path) -> None:
    engine = opened(int8_store, context_length=32)
    for length in (1, 5, 21):
        found = answer(engine, max_tokens=length)       # 11 tokens of prompt
        assert (len(found.tokens), found.finish_reason) == (length, FinishReason.LENGTH)
    full = answer(engine, max_tokens=10 ** 9)
    assert (len(full.tokens), full.finish_reason) == (21, FinishReason.LENGTH)
    last = answer(engine, 'x' * 31, max_tokens=5)
    assert (len(last.tokens), last.finish_reason) == (1, FinishReason.LENGTH)
    engine.close()


def test_end_token(tmp_path: Path, int8_store: Path) -> None:
    """The same weights, but the sixth token of the answer ends it."""
    engine = opened(int8_store)
    tokens = answer(engine).tokens
    engine.close()
    end = next(token for token in tokens[5:] if token not in tokens[:5])
    checkpoint = write_checkpoint(tmp_path / 'checkpoint', eos_token_id=[257, end])
    store = converted(checkpoint, tmp_path / 'store', calibrate=False).path
    engine = opened(store)
    found = answer(engine)
    assert found.tokens == tokens[:tokens.index(end) + 1]
    assert found.finish_reason is FinishReason.STOP
    assert len(found.text) == len(found.tokens) - 1     # one letter a token, none for the end
    engine.close()


def test_stop_strings(int8_store: Path) -> None:
    engine = opened(int8_store)
    text = answer(engine).text
    stop = text[10:13]
    found = answer(engine, stop=(stop, 'never there'))
    assert found.text == text[:text.index(stop)]
    assert found.finish_reason is FinishReason.STOP
    held = answer(engine, stop=(text[-2:] + 'never there',), max_tokens=30)
    assert held.text == text and held.finish_reason is FinishReason.LENGTH
    engine.close()
