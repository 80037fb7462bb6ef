"""A system prompt on flash: the same bytes as without, never another one's, never a broken one."""

from dataclasses import fields
import os
from pathlib import Path
import resource
import shutil
import time

from generation_cases import MODES, answer, flash_uses, request
import pytest
from refusals import assert_error

from flash_llm_ros.engine import Engine, EngineConfig, Generation, SamplingParams
from flash_llm_ros.store.errors import ErrorCode
from flash_llm_ros.store.flash_device import FlashDevice

SYSTEM = 'You are the voice of a robot with two wheels. ' * 3
PROMPTS = ('Where are you?', 'x', '\nHello')


def opened(store: Path, folder: Path, **options: object) -> tuple[Engine, list[str]]:
    lines: list[str] = []
    options = {'prefill_chunk': 16, **options, 'session_folder': folder}
    budget = options.pop('dram_budget', 60_000_000)
    return Engine.open(EngineConfig(store, budget, **options), log=lines.append), lines


def ask(engine: Engine, prompt: str = PROMPTS[0], **options: object) -> Generation:
    return answer(engine, prompt, **{
        'raw': False, 'system_prompt': SYSTEM, 'keep_system_prompt': True, **options})


def preamble(engine: Engine) -> list[int]:
    """By hand, the template being known."""
    return engine.tokenize(f'<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>user\n')


def kept_file(folder: Path) -> Path:
    file, = folder.glob('flash_llm_*.kv')
    assert list(folder.iterdir()) == [file]
    return file


@pytest.mark.parametrize('mode', MODES)
def test_warm_answers_are_the_cold_ones(stores: dict[str, Path], tmp_path: Path,
                                        mode: str) -> None:
    options = {'sampling': SamplingParams(temperature=0.9, seed=1)}
    engine, _ = opened(stores[mode], tmp_path, mode=mode, lookup_tokens=0)
    before = len(preamble(engine))
    cold = ask(engine, **options)
    assert cold.stats.cached_tokens == 0
    warm = ask(engine, **options)
    others = [ask(engine, prompt).tokens for prompt in PROMPTS]
    engine.close()
    again, lines = opened(stores[mode], tmp_path, mode=mode, lookup_tokens=0)
    again.keep_system_prompt(SYSTEM)
    assert f'read the {before} tokens of the system prompt' in lines[-1]
    started = ask(again, **options)
    for found in (warm, started):
        assert (found.tokens, found.text) == (cold.tokens, cold.text)
        assert found.stats.cached_tokens == before
    if mode == 'exact':
        assert started.stats.window_hits + started.stats.window_misses == flash_uses(
            stores[mode], started.prompt_tokens[before:], started.tokens, 16)
    assert [ask(again, prompt).tokens for prompt in PROMPTS] == others
    again.close()
    assert kept_file(tmp_path)


def test_computed_at_the_start(int8_store: Path, tmp_path: Path) -> None:
    engine, lines = opened(int8_store, tmp_path)
    engine.keep_system_prompt(SYSTEM)
    assert 'computing' in lines[-1]
    first = ask(engine)
    assert first.stats.cached_tokens == len(preamble(engine))
    kept_file(tmp_path).unlink()
    assert ask(engine).tokens == first.tokens               # the rows are still in their place
    answer(engine, 'something else')
    missing = ask(engine)
    assert (missing.tokens, missing.stats.cached_tokens) == (first.tokens, 0)
    engine.close()


def test_others_are_not_touched(int8_store: Path, tmp_path: Path) -> None:
    """A request that brings its own system prompt leaves nothing on flash."""
    engine, _ = opened(int8_store, tmp_path)
    found = ask(engine, keep_system_prompt=False)
    again = ask(engine, keep_system_prompt=False)
    assert again.tokens == found.tokens and again.stats.cached_tokens == 0
    engine.close()
    assert not list(tmp_path.iterdir())


def damaged(file: Path, how: str) -> None:
    content = bytearray(file.read_bytes())
    if how == 'row':
        content[len(content) // 2] ^= 1
    elif how == 'hash':
        content[-1] ^= 1
    elif how == 'cut':
        del content[-100:]
    elif how == 'longer':
        content += b'x'
    elif how == 'empty':
        content.clear()
    elif how == 'key':
        content[20] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize('how', ['row', 'hash', 'cut', 'longer', 'empty', 'key', 'folder', 'pipe'])
def test_a_damaged_file_is_never_used(int8_store: Path, tmp_path: Path, how: str) -> None:
    engine, lines = opened(int8_store, tmp_path)
    expected = ask(engine).tokens
    answer(engine, 'something else')
    if how in ('folder', 'pipe'):
        file = kept_file(tmp_path)
        file.unlink()
        (os.mkfifo if how == 'pipe' else os.mkdir)(file)
    else:
        damaged(kept_file(tmp_path), how)
    found = ask(engine)
    assert (found.tokens, found.stats.cached_tokens) == (expected, 0)
    assert any('.kv' in line and 'not used' in line for line in lines[-2:])
    if how != 'folder':     # it is written anew; a folder is not written over
        answer(engine, 'something else')
        found = ask(engine)
        assert found.tokens == expected and found.stats.cached_tokens
    engine.close()


def test_a_file_of_others_is_never_used(int8_store: Path, fp16_store: Path,
                                        tmp_path: Path) -> None:
    """Another store, other tokens or other settings have other names; under ours it is refused."""
    engine, lines = opened(int8_store, tmp_path / 'ours')
    expected = ask(engine).tokens
    ask(engine)
    answer(engine, 'something else')
    ours = kept_file(tmp_path / 'ours')
    engine.close()
    for index, (store, options, system) in enumerate((
            (fp16_store, {}, SYSTEM), (int8_store, {'prefill_chunk': 32}, SYSTEM),
            (int8_store, {'threads': 2}, SYSTEM),
            (int8_store, {}, SYSTEM.replace('two', 'six')))):
        folder = tmp_path / str(index)
        other, _ = opened(store, folder, **options)
        other.keep_system_prompt(system)
        other.close()
        theirs = kept_file(folder)
        assert theirs.name != ours.name
        ours.write_bytes(theirs.read_bytes())
        engine, lines = opened(int8_store, tmp_path / 'ours')
        found = ask(engine)
        assert (found.tokens, found.stats.cached_tokens) == (expected, 0)
        assert 'not one of this store' in lines[-1]
        engine.close()


# Another value of every setting; a new one must be named here, and say in EngineConfig whether
# keys and values follow from it.
OTHERS = {
    'dram_budget': 50_000_000, 'mode': 'gated', 'context_length': 500, 'kv_cache': 'int16',
    'prefill_chunk': 32, 'lookup_tokens': 0, 'structured': True, 'threads': 2,
    'reader': 'threads', 'reads_in_flight': 3, 'direct_io': False, 'lock_memory': False,
    'verify': False, 'max_sessions': 1, 'clock': lambda: 0.0, 'draft_store': None}
DECIDING = {'mode', 'context_length', 'kv_cache', 'prefill_chunk', 'threads'}


def rows_of(store: Path, folder: Path, **options: object) -> tuple[str, list[bytes]]:
    """The name of the file with a system prompt, and the keys and values in the cache."""
    engine, _ = opened(store, folder, **options)
    engine.keep_system_prompt(SYSTEM)
    rows = [bytes(row) for row in engine.model.attention.rows(len(preamble(engine)))]
    engine.close()
    return kept_file(folder).name, rows


@pytest.mark.parametrize('name', [each.name for each in fields(EngineConfig)])
def test_a_setting_that_keys_and_values_follow_from_changes_the_key(
        planted_store: Path, tmp_path: Path, name: str) -> None:
    """And with another value of any other one, they are the same bytes."""
    store = shutil.copytree(planted_store, tmp_path / 'copy') if name == 'store' else planted_store
    other = {} if name in ('store', 'session_folder') else {name: OTHERS[name]}
    if name == 'draft_store':
        other = {name: planted_store}
    name_of_usual, rows = rows_of(planted_store, tmp_path / 'usual', mode='exact')
    name_of_other, others = rows_of(store, tmp_path / 'other', **{'mode': 'exact', **other})
    assert (name_of_other != name_of_usual) == (name in DECIDING)
    if name not in DECIDING:
        assert others == rows


def test_mode_auto_is_the_mode_that_it_comes_to(planted_store: Path, tmp_path: Path) -> None:
    auto, _ = rows_of(planted_store, tmp_path / 'auto', mode='auto')
    exact, _ = rows_of(planted_store, tmp_path / 'exact', mode='exact')
    assert auto == exact


@pytest.mark.parametrize('full', [False, True])
def test_a_folder_that_takes_nothing_costs_time_only(int8_store: Path, tmp_path: Path,
                                                     full: bool) -> None:
    folder = tmp_path / 'folder'
    if not full:
        folder.write_text('a file')
    engine, lines = opened(int8_store, folder)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        expected = ask(engine).tokens
        assert 'cannot be written' in lines[-1] and '.kv: ' in lines[-1]
        assert ask(engine).tokens == expected
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not full or not list(folder.iterdir())
    engine.close()


def test_only_the_files_used_last_stay(int8_store: Path, tmp_path: Path) -> None:
    engine, _ = opened(int8_store, tmp_path)
    others = [tmp_path / 'mission.kv', tmp_path / 'flash_llm_notes.txt']
    for file in others:
        file.write_text('not ours')
        os.utime(file, (1, 1))
    names = []
    for number in range(10):
        engine.keep_system_prompt(f'You are number {number}.')
        names.append(engine._runs._kept_prompt.path.name)
        time.sleep(0.01)        # their times of change have to differ
    expected = {*names[2:], *(file.name for file in others)}
    assert {file.name for file in tmp_path.iterdir()} == expected
    engine.close()


def test_sessions_begin_with_it(int8_store: Path, tmp_path: Path) -> None:
    engine, _ = opened(int8_store, tmp_path)
    cold = [ask(engine, prompt, session_id='a') for prompt in PROMPTS[:2]]
    answer(engine, 'something else')
    warm = [ask(engine, prompt, session_id='b') for prompt in PROMPTS[:2]]
    assert [found.tokens for found in warm] == [found.tokens for found in cold]
    assert [found.stats.cached_tokens for found in cold] == [
        0, len(cold[0].prompt_tokens) + len(cold[0].tokens) - 1]
    assert warm[0].stats.cached_tokens == len(preamble(engine))
    engine.close()


@pytest.mark.parametrize('pieces', [1, 8, 14])
def test_interrupted_while_it_is_computed(int8_store: Path, tmp_path: Path, pieces: int) -> None:
    engine, _ = opened(int8_store, tmp_path)
    expected = ask(engine, keep_system_prompt=True).tokens
    engine.close()
    for file in tmp_path.iterdir():
        file.unlink()
    engine, _ = opened(int8_store, tmp_path)
    asked = request(PROMPTS[0], raw=False, system_prompt=SYSTEM, keep_system_prompt=True)
    generation = engine.start(asked)
    running = iter(generation)
    for _ in range(pieces):
        next(running)
    suspended = engine.suspend()
    answer(engine, 'something else')
    assert ask(engine).tokens == expected
    engine.resume(suspended)
    for _ in running:
        pass
    assert generation.tokens == expected
    assert ''.join(engine.start(asked)) == generation.text
    engine.close()


def test_one_that_does_not_fit(int8_store: Path, tmp_path: Path) -> None:
    engine, _ = opened(int8_store, tmp_path, context_length=64)
    with assert_error(ErrorCode.PROMPT_TOO_LONG, 'system_prompt'):
        engine.keep_system_prompt(SYSTEM)
    engine.close()


def test_a_folder_in_memory_is_told(int8_store: Path) -> None:
    shared = Path('/dev/shm')
    if not shared.is_dir() or FlashDevice.of(shared).file_system != 'tmpfs':
        pytest.skip('this machine has no tmpfs at /dev/shm')
    engine, lines = opened(int8_store, shared / 'not there yet')
    assert any('lies in memory (tmpfs)' in line for line in lines)
    engine.close()
