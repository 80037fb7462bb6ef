"""Every command of bench/ can be started, and the table in bench/README.md has them all."""

from importlib import import_module
from pathlib import Path
import pkgutil
import re

import pytest

import bench

README = Path(bench.__file__).with_name('README.md')


def command_modules():
    pytest.importorskip('rclpy')
    modules = [import_module(each.name) for each in pkgutil.walk_packages(bench.__path__, 'bench.')
               if each.name != 'bench.memory.llama_cpp']      # whose engine is not installed
    return [module for module in modules if hasattr(module, 'parser')]


def test_the_table_has_every_command():
    listed = re.findall(r'^\| `(bench[.\w]+)', README.read_text(), re.MULTILINE)
    assert sorted(listed) == sorted(module.__name__ for module in command_modules())


def test_help_says_in_two_lines_what_is_measured(capsys):
    for module in command_modules():
        parser = module.parser()
        with pytest.raises(SystemExit) as ended:
            parser.parse_args(['--help'])
        assert ended.value.code == 0 and '--json' in capsys.readouterr().out
        # The docstring's first paragraph is what --help has of it.
        assert parser.description == module.__doc__.strip().partition('\n\n')[0].replace('\n', ' ')
