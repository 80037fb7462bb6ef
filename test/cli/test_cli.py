"""The commands: exit codes, what goes to which stream, and what a script reads."""

import json
from pathlib import Path
import shutil
import subprocess
import sys

import pytest
from tiny_checkpoint import write_checkpoint

from flash_llm_ros.cli.main import main
from flash_llm_ros.store.device_profile import DeviceProfile, Measurement
from flash_llm_ros.store.flash_device import FlashDevice


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def failed(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The message of a command that fails as expected: one on stderr, nothing on stdout."""
    code, out, err = run(capsys, *arguments)
    assert (code, out) == (1, '')
    message = err[err.index('flash_llm: '):]
    assert 'Traceback' not in err
    return message


def test_convert_verify_inspect_prompt(tmp_path: Path, checkpoint_folder: Path,
                                       capsys: pytest.CaptureFixture[str]) -> None:
    store = tmp_path / 'a.store'
    code, out, err = run(capsys, 'convert', checkpoint_folder, store)
    assert code == 0 and out.startswith(f'{store}: ') and 'split layout' in out
    assert 'neurons: ' in err

    code, out, _ = run(capsys, 'verify', store)
    assert code == 0 and 'intact' in out and str(store) in out

    code, out, err = run(capsys, 'prompt', store, 'Hello', '--budget', '20MB', '--mode', 'exact',
                         '--max-tokens', '7', '--raw', '--context', '64')
    assert code == 0 and len(out.strip()) == 7
    assert 'resident weights' in err and '5 + 7 tokens' in err and 'peak RSS' in err
    again = run(capsys, 'prompt', store, 'Hello', '--budget', '20MB', '--max-tokens', '7', '--raw',
                '--context', '64')      # auto is exact here
    assert again[1] == out


def test_inspect(int8_store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, 'inspect', int8_store)
    assert code == 0 and err == ''
    rows = dict(line.split(maxsplit=1) for line in out.splitlines())
    assert '3 layers of width 64, each of 256 neurons (silu)' in rows['model']
    assert '4 heads, 2 for keys and values' in rows['attention']
    assert rows['formats'] == 'neurons int8'
    assert rows['calibration'] == 'none: mode exact only'
    facts = json.loads(run(capsys, 'inspect', int8_store, '--json')[1])
    assert facts['model']['layers'] == 3 and facts['calibration'] is None
    assert (facts['layout'], facts['neurons'], facts['resident']) == ('split', 'int8', 'q8')
    assert facts['bytes'] == sum(entry['bytes'] for entry in facts['files'].values())


@pytest.mark.parametrize(('redirected', 'code', 'words'), [
    ('>&-', 0, 'done'), ('2>&-', 0, ''), ('>&- 2>&-', 0, ''), ('>/dev/full', 1, 'No space left')])
def test_outputs_that_are_closed_or_full(int8_store: Path, redirected: str, code: int,
                                         words: str) -> None:
    done = subprocess.run(
        ['sh', '-c', f'exec "$@" {redirected}', 'sh', sys.executable, '-c',
         'import sys; from flash_llm_ros.cli.main import main; sys.exit(main())', 'verify',
         int8_store], capture_output=True, text=True, check=False,
        env={'PYTHONPATH': ':'.join(sys.path)})
    assert done.returncode == code and words in done.stderr and 'Traceback' not in done.stderr


def test_inspect_a_calibrated_store(planted_store: Path,
                                    capsys: pytest.CaptureFixture[str]) -> None:
    out = run(capsys, 'inspect', planted_store)[1]
    facts = json.loads(run(capsys, 'inspect', planted_store, '--json')[1])['calibration']
    assert 'bundled layout' in out and len(facts['thresholds']) == 3
    assert f'mode gated uses {facts["active_share"]:.0%} of the neurons' in out
    zeros = [one['zeros'] for one in facts['predictors']]
    assert f'{sum(zeros) / len(zeros):.0%} of the activations are 0' in out
    assert f'{facts["perplexity_ratio"]:.4f} ± {facts["perplexity_error"]:.4f} times' in out


def test_only_a_calibrated_store_is_gated(int8_store: Path, planted_store: Path,
                                          capsys: pytest.CaptureFixture[str]) -> None:
    ask = ('Hello', '--budget', '60MB', '--mode', 'gated', '--max-tokens', '3')
    assert 'mode is gated' in failed(capsys, 'prompt', int8_store, *ask)
    assert run(capsys, 'prompt', planted_store, *ask)[0] == 0


def test_a_model_of_short_texts_needs_no_context(tmp_path: Path,
                                                 capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_checkpoint(tmp_path / 'short', max_position_embeddings=256)
    assert run(capsys, 'convert', folder, tmp_path / 'store')[0] == 0
    ask = ('prompt', tmp_path / 'store', 'Hello', '--budget', '60MB', '--max-tokens', '3')
    assert run(capsys, *ask)[0] == 0
    assert 'trained for at most 256' in failed(capsys, *ask, '--context', '300')


def test_convert_to_int4_within_a_loss(tmp_path: Path, checkpoint_folder: Path,
                                       capsys: pytest.CaptureFixture[str]) -> None:
    """Of random weights nothing is 4-bit already: without any loss all stays int8."""
    store = tmp_path / 'store'
    code, out, err = run(capsys, 'convert', checkpoint_folder, store, '--no-calibration',
                         '--neurons', 'int4', '--most-loss', '0')
    assert code == 0 and ' MB, int8; split layout' in out and 'trying fewer bits: 7 done' in err
    assert 'neurons int8\n' in run(capsys, 'inspect', store)[1]
    message = failed(capsys, 'convert', checkpoint_folder, tmp_path / 'b', '--neurons', 'int4',
                     '--most-loss', '-1')
    assert 'most_loss is -1.0' in message and not (tmp_path / 'b').exists()
    message = failed(capsys, 'convert', checkpoint_folder, tmp_path / 'b', '--neurons', 'int4',
                     '--bytes-per-token', '0.5', '--resident', 'q4')
    assert 'bytes_per_token is 0.5; it must be at least 1, where all' in message


def test_inspect_without_calibration(tmp_path: Path, checkpoint_folder: Path,
                                     capsys: pytest.CaptureFixture[str]) -> None:
    store = tmp_path / 'store'
    assert run(capsys, 'convert', checkpoint_folder, store, '--no-calibration', '--neurons',
               'fp16', '--resident', 'q4', '--block', '4096')[0] == 0
    code, out, _ = run(capsys, 'inspect', store)
    assert code == 0 and 'none: mode exact only' in out
    assert 'neurons qkv int4, o int4, gate_up fp16, down fp16, embedding fp16' in out
    facts = json.loads(run(capsys, 'inspect', store, '--json')[1])
    assert facts['calibration'] is None and facts['geometry']['block'] == 4096


def test_convert_refuses(tmp_path: Path, checkpoint_folder: Path,
                         capsys: pytest.CaptureFixture[str]) -> None:
    new, there = tmp_path / 'new', tmp_path / 'there'
    there.mkdir()
    assert '--replace' in failed(capsys, 'convert', checkpoint_folder, there)
    assert 'no flash store' in failed(capsys, 'convert', checkpoint_folder, there, '--replace')
    assert 'does not exist' in failed(capsys, 'convert', tmp_path / 'nowhere', new)
    assert 'block' in failed(capsys, 'convert', checkpoint_folder, new, '--block', '1000')
    assert 'missing.txt' in failed(capsys, 'convert', checkpoint_folder, new, '--text',
                                   tmp_path / 'missing.txt')
    (tmp_path / 'short.txt').write_text('Too short.')
    relu = write_checkpoint(tmp_path / 'relu', hidden_act='relu')
    assert 'calibration text' in failed(capsys, 'convert', relu, new, '--text',
                                        tmp_path / 'short.txt')
    (tmp_path / 'latin.txt').write_bytes(b'\xe9t\xe9' * 100)
    assert 'latin.txt' in failed(capsys, 'convert', checkpoint_folder, new, '--text',
                                 tmp_path / 'latin.txt')
    (tmp_path / 'a.gguf').write_bytes(b'GGUF but no more')
    assert 'GGUF' in failed(capsys, 'convert', tmp_path / 'a.gguf', new)
    assert 'short.txt' in failed(capsys, 'convert', checkpoint_folder,
                                 tmp_path / 'short.txt' / 'store')
    assert not new.exists()


def one_sentence(message: str, *parts: object) -> bool:
    """With all these in it, and without what Python puts around an error."""
    assert message.count('\n') == 1 and 'Errno' not in message and 'Path(' not in message, message
    return all(str(part) in message for part in parts)


def test_paths_that_cannot_be(tmp_path: Path, checkpoint_folder: Path, gated_store: Path,
                              capsys: pytest.CaptureFixture[str],
                              monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is named, and what would be right."""
    file, none = tmp_path / 'file', tmp_path / 'none'
    file.touch()
    for target in (file / 'robot.store', '/proc/x/robot.store'):
        assert one_sentence(failed(capsys, 'convert', checkpoint_folder, target),
                            Path(target).parent, 'must be there')
    for text in (tmp_path, none):
        assert one_sentence(failed(capsys, 'calibrate', gated_store, '--text', text), text,
                            'UTF-8 files, or .jsonl')
    monkeypatch.chdir(tmp_path)
    for checkpoint in (tmp_path, ''):
        assert one_sentence(failed(capsys, 'convert', checkpoint, 'new'), Path(checkpoint),
                            'no config.json; a checkpoint is a Hugging Face folder or a .gguf')
    assert one_sentence(failed(capsys, 'convert', checkpoint_folder, 'new', '--ffn', none), none)


@pytest.mark.parametrize(('command', 'option'), [
    (('bench', 'STORE'), '--json'), (('probe', 'STORE'), '--json'), (('report', 'STORE'), '--json'),
    (('report', 'STORE'), '--out'), (('demo', '--store', 'STORE'), '--json'),
    (('replay', 'BAG'), '--json'), (('replay', 'BAG'), '--record')])
def test_where_nothing_can_be_written_is_told_before_the_work(
        tmp_path: Path, capsys: pytest.CaptureFixture[str], command: tuple[str, ...],
        option: str) -> None:
    for path in (tmp_path, tmp_path / 'none' / 'file'):
        with pytest.raises(SystemExit) as error:
            main([*command, option, str(path)])
        assert error.value.code == 2
        assert f'argument {option}: {path} ' in capsys.readouterr().err


def test_a_store_that_cannot_be_written(gated_store: Path, monkeypatch: pytest.MonkeyPatch,
                                        capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr('os.access', lambda path, mode: False)      # all is allowed to root
    assert one_sentence(failed(capsys, 'calibrate', gated_store), gated_store,
                        'cannot be written', 'a copy')
    assert one_sentence(failed(capsys, 'probe', gated_store), gated_store, 'cannot be written')


def test_verify_finds_damage(tmp_path: Path, int8_store: Path,
                             capsys: pytest.CaptureFixture[str]) -> None:
    store = shutil.copytree(int8_store, tmp_path / 'store')
    with (store / 'neurons.bin').open('r+b') as file:
        file.write(b'damage')
    assert 'neurons.bin was changed' in failed(capsys, 'verify', store)
    (store / 'manifest.yaml').unlink()
    for command in ('verify', 'inspect'):
        assert 'no manifest.yaml' in failed(capsys, command, store)
        assert 'There is no flash store' in failed(capsys, command, tmp_path / 'nowhere')


@pytest.mark.parametrize(('options', 'words'), [
    (('--budget', '1MB'), 'needs at least'), (('--budget', 'lots'), "budget is 'lots'"),
    (('--context', '9999'), 'at most 4096'), (('--max-tokens', '0'), 'max_tokens is 0'),
    (('--seed', '-1'), 'seed is -1'), (('--mode', 'fast'), 'one of auto, exact, gated'),
])
def test_prompt_refuses(int8_store: Path, capsys: pytest.CaptureFixture[str],
                        options: tuple[str, ...], words: str) -> None:
    assert words in failed(capsys, 'prompt', int8_store, 'Hello', '--budget', '20MB', *options)


def test_a_prompt_of_bytes_that_are_no_text(int8_store: Path,
                                            capsys: pytest.CaptureFixture[str]) -> None:
    r"""\udcff is what Python makes of a byte of the command line that is no UTF-8."""
    assert 'not valid UTF-8' in failed(capsys, 'prompt', int8_store, 'a\udcff', '--budget', '20MB')


@pytest.mark.parametrize('arguments', [
    (), ('fly',), ('convert', 'a'), ('verify', 'a', 'b'), ('inspect', '--xml', 'a'),
    ('convert', 'a', 'b', '--neurons', 'int2'), ('prompt', 'a', 'b', '--max-tokens', 'many'),
])
def test_usage(capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...]) -> None:
    with pytest.raises(SystemExit) as error:
        main(list(arguments))
    captured = capsys.readouterr()
    assert error.value.code == 2 and captured.out == '' and 'usage: flash_llm' in captured.err


def test_interrupted(int8_store: Path, capsys: pytest.CaptureFixture[str],
                     monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr('flash_llm_ros.engine.Engine.open', interrupt)
    code, out, err = run(capsys, 'prompt', int8_store, 'Hello')
    assert (code, out, err) == (130, '', 'flash_llm: interrupted\n')


def test_bench(tmp_path: Path, int8_store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its figures agree with each other and with the profile, whose floor is worked out here."""
    store = shutil.copytree(int8_store, tmp_path / 'store')
    rate = 1000.0       # reads a second, of any size
    DeviceProfile(
        FlashDevice.of(store), 'threads', True, '2026-01-01T00:00:00+00:00', 10**6,
        tuple(Measurement(pattern, size, 1, rate)
              for pattern in ('random', 'sequential') for size in (4096, 1 << 20)),
    ).save(store / 'profile.yaml')
    figures = tmp_path / 'bench.json'
    code, out, err = run(capsys, 'bench', store, '--budget', '20MB', '--tokens', '9', '--runs', '2',
                         '--context', '128', '--json', figures)
    assert code == 0 and 'answering: 3 done' in err
    facts = json.loads(figures.read_text())
    assert len(facts['runs']) == 2 and all(entry['tokens'] == 9 for entry in facts['runs'])
    assert facts['budget'] == 20_000_000 and facts['mode'] == 'exact'
    assert facts['token_seconds'] == 1 / facts['tokens_per_second']
    assert facts['least_tokens_per_second'] <= facts['tokens_per_second']
    assert facts['token_flash_reads'] == pytest.approx(
        sum(entry['flash_reads'] for entry in facts['runs']) / 2 / 8)
    assert facts['token_floor_seconds'] == pytest.approx(facts['token_flash_reads'] / rate)
    assert facts['peak_rss'] >= facts['bare_rss'] > 0
    last = out.splitlines()[-1]
    assert f'{facts["tokens_per_second"]:.2f} tokens/s' in last and 'of 20.0 MB' in last


def test_an_answer_of_a_given_form(capsys, int8_store: Path, tmp_path: Path) -> None:
    schema = tmp_path / 'schema.json'
    schema.write_text('{"const": [1, 2]}')
    for form, right in ((('--choice', 'yes', '--choice', 'no'), ('yes', 'no')),
                        (('--regex', 'a{3}'), ('aaa',)), (('--json-schema', schema), ('[1,2]',))):
        code, out, err = run(capsys, 'prompt', int8_store, 'Hello', '--budget', '60MB', *form)
        assert code == 0 and out.strip() in right and 'structured answers' in err
    assert 'regex' in failed(capsys, 'prompt', int8_store, 'Hello', '--budget', '60MB',
                             '--regex', '(')


@pytest.mark.parametrize(('command', 'code', 'word'), [
    ('prompt {store} Hello --budget 30MB --max-tokens 3 --raw', 0, 'resident weights'),
    ('preset smollm2-135m-instruct', 0, 'dram_budget: '), ('inspect {store}', 0, 'neurons int8'),
    ('convert {checkpoint} a.store', 1, 'is not there, which only converting needs: pip install'),
    ('inspect {checkpoint}', 1, 'is not there, which only converting needs: pip install'),
])
def test_a_robot_that_converts_nothing(planted_store: Path, checkpoint_folder: Path, command: str,
                                       code: int, word: str) -> None:
    """It lacks the libraries of requirements/convert.txt, and asks for them only to convert."""
    arguments = command.format(store=planted_store, checkpoint=checkpoint_folder).split()
    ended = subprocess.run(
        [sys.executable, '-c', "import sys; sys.modules.update(dict.fromkeys(('gguf', 'ml_dtypes', "
         "'onnx'))); from flash_llm_ros.cli.main import main; sys.exit(main(sys.argv[1:]))",
         *arguments], capture_output=True, text=True)
    assert (ended.returncode, 'Traceback' in ended.stderr) == (code, False), ended.stderr
    assert word in ended.stdout + ended.stderr
