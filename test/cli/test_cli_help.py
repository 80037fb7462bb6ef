"""The face of the commands: help, examples, exit codes, and the same as verbs of `ros2`."""

import argparse
from importlib.metadata import EntryPoint
import re
import shlex
import subprocess
import sys
import types

import pytest

from flash_llm_ros.cli.main import COMMANDS, LEFT, declare, main
from flash_llm_ros.cli.ros2_verbs import CLASSES, VERBS, FlashLlmCommand, Verb


def parser_of(name: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=f'flash_llm {name}')
    declare(name, parser)
    return parser


@pytest.mark.parametrize('name', COMMANDS)
def test_every_option_is_explained(name: str) -> None:
    parser = parser_of(name)
    for action in parser._actions:
        assert action.help, f'{name}: {action.dest}'
        takes_number = action.type in (int, float) and action.default is not None
        assert not takes_number or 'default' in action.help, f'{name}: {action.dest}'


@pytest.mark.parametrize('name', COMMANDS)
def test_the_examples_are_right(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """They parse; what stands behind three spaces is an explanation."""
    parser = parser_of(name)
    assert parser.epilog.startswith('examples:\n')
    lines = [line.split('|')[0] if 'jq' in line else line.split('| ')[-1]
             for line in parser.epilog.splitlines() if f'flash_llm {name}' in line
             and line.startswith('  ')]
    assert lines
    for line in lines:
        command = re.split(r'\s{3,}', line.strip())[0]
        assert len(line) <= 100
        parser.parse_args(shlex.split(command)[2:])


def test_exit_codes_are_documented(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(['--help'])
    out = capsys.readouterr().out
    assert all(f'\n  {code} ' in out for code in (0, 1, 2, 130, 141))


def test_a_reader_that_leaves_is_no_error(int8_store) -> None:
    code = ('import sys; from flash_llm_ros.cli.main import main; '
            f'sys.exit(main(["inspect", {str(int8_store)!r}, "--json"]))')
    done = subprocess.run(
        ['bash', '-c', '{ "$0" -c "$1"; echo "code $?" >&2; } | true', sys.executable, code],
        capture_output=True, text=True, timeout=60,
        env={'PYTHONPATH': ':'.join(sys.path), 'PATH': '/usr/bin:/bin'})
    assert 'Traceback' not in done.stderr and 'code 141' in done.stderr


INTERRUPTED_IMPORT = '''
import os, signal, sys
class Impatient:
    def find_spec(self, name, *_):
        if name == 'numpy':
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Impatient())
from flash_llm_ros.cli.main import main
main(['convert', 'a', 'b'])
'''


def test_ctrl_c_while_libraries_are_loaded() -> None:
    done = subprocess.run([sys.executable, '-c', INTERRUPTED_IMPORT], capture_output=True,
                          text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (130, '', 'flash_llm: interrupted\n')


@pytest.mark.parametrize('name', LEFT)
def test_a_command_of_before_says_what_to_do(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([name, 'STORE'])
    assert ended.value.code == 2
    assert f'the command `{name}` has left: ' in capsys.readouterr().err


def test_every_command_is_a_verb() -> None:
    assert {cls.NAME for cls in CLASSES.values()} == set(COMMANDS)
    assert len(set(CLASSES.values())) == len(COMMANDS)      # ros2cli keeps one object of a class
    for name, cls in CLASSES.items():
        assert cls is getattr(sys.modules[Verb.__module__], name)
        assert cls.__doc__.splitlines()[0].rstrip('.') and cls.EXTENSION_POINT_VERSION == '0.1'


def test_setup_declares_the_entry_points() -> None:
    """As ros2cli loads them, out of what setup.py says."""
    from pathlib import Path

    root = Path(__file__).resolve().parents[2]
    code = ('import runpy, setuptools, json; setuptools.setup = lambda **k: print(json.dumps('
            '{g: k["entry_points"][g] for g in k["entry_points"]})); '
            'runpy.run_path("setup.py")')
    done = subprocess.run([sys.executable, '-c', code], cwd=root, capture_output=True, text=True,
                          timeout=60, check=True)
    groups = __import__('json').loads(done.stdout)
    points = {group: [EntryPoint(*map(str.strip, line.split('=', 1)), group) for line in lines]
              for group, lines in groups.items()}
    assert points['ros2cli.command'][0].load() is FlashLlmCommand
    assert points['ros2cli.extension_point'][0].name == VERBS
    assert {point.name: point.load() for point in points[VERBS]} == {
        cls.NAME: cls for cls in CLASSES.values()}


@pytest.fixture
def ros2(monkeypatch: pytest.MonkeyPatch):
    """`ros2 flash_llm ...` as ros2cli calls its extensions, with the verbs found here."""
    def add_subparsers_on_demand(parser, cli_name, dest, group_name, hide_extensions=None,
                                 required=True, argv=None):
        assert group_name == VERBS
        commands = parser.add_subparsers(required=required)
        for cls in CLASSES.values():
            extension = cls()
            command = commands.add_parser(
                extension.NAME, formatter_class=argparse.RawDescriptionHelpFormatter)
            command.set_defaults(**{dest: extension})
            if extension.NAME in argv:
                extension.add_arguments(command, f'{cli_name} {extension.NAME}')

    command = types.ModuleType('ros2cli.command')
    command.add_subparsers_on_demand = add_subparsers_on_demand
    monkeypatch.setitem(sys.modules, 'ros2cli', types.ModuleType('ros2cli'))
    monkeypatch.setitem(sys.modules, 'ros2cli.command', command)

    def call(*arguments: str) -> int:
        extension = FlashLlmCommand()
        parser = argparse.ArgumentParser(prog='ros2 flash_llm')
        extension.add_arguments(parser, 'ros2 flash_llm', argv=list(arguments))
        return extension.main(parser=parser, args=parser.parse_args(list(arguments)))

    return call


def test_a_verb_does_what_the_command_does(ros2, int8_store, tmp_path, capsys) -> None:
    assert ros2('inspect', str(int8_store)) == 0
    verb = capsys.readouterr().out
    assert main(['inspect', str(int8_store)]) == 0
    assert verb == capsys.readouterr().out != ''
    assert ros2('verify', str(tmp_path / 'nowhere')) == 1
    assert 'There is no flash store' in capsys.readouterr().err
    assert ros2() == 0 and 'exit codes' in capsys.readouterr().out
