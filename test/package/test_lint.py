"""The house rules that a program can check."""

import ast
from pathlib import Path
import re
import subprocess
import sys

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / 'flash_llm_ros'
SOURCES = [
    path for folder in ('bench', 'flash_llm_ros', 'native', 'launch', 'test', 'tools')
    for path in sorted((ROOT / folder).rglob('*')) if path.suffix in ('.py', '.cpp', '.hpp')
]


@pytest.mark.parametrize('command', [
    (sys.executable, '-m', 'ruff', 'check', '--no-cache', '.'),
    (str(Path(sys.prefix, 'bin', 'lint-imports')), '--no-cache')], ids=['ruff', 'import-linter'])
def test_nothing_is_found(command: tuple[str, ...]) -> None:
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stdout + done.stderr


def test_files_stay_short_and_say_what_is_in_them() -> None:
    assert len(SOURCES) > 300
    lines = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in SOURCES}
    assert {name: count for name, count in lines.items() if count > 450} == {}
    assert [name for name in lines if 'util' in Path(name).stem] == []


def test_native_rooms_include_only_what_lies_below() -> None:
    rooms = ['bindings', 'core', 'window', 'math', 'io', 'errors']
    own = re.compile(r'^#include "(\w+)[/.]', re.MULTILINE)
    found = {(path.relative_to(ROOT / 'native').parts[0].removesuffix('.hpp'), room)
             for path in (ROOT / 'native').rglob('*.?pp') for room in own.findall(path.read_text())}
    assert ('bindings', 'core') in found
    assert {pair for pair in found if rooms.index(pair[1]) < rooms.index(pair[0])} == set()


def imports_on_loading(tree: ast.AST) -> set[str]:
    """Return the top-level packages that a module imports at once, whatever is called later."""
    found = set()
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition('.')[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.add(node.module.partition('.')[0])
        elif isinstance(node, ast.If) and ast.unparse(node.test) == 'TYPE_CHECKING':
            continue
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            found |= imports_on_loading(node)
    return found


def test_only_node_and_client_import_ros_on_loading() -> None:
    ros = {'rclpy', 'flash_llm_msgs', 'std_msgs', 'lifecycle_msgs', 'diagnostic_msgs'}
    guilty = {
        str(path.relative_to(ROOT)) for path in PACKAGE.rglob('*.py')
        if imports_on_loading(ast.parse(path.read_text())) & ros
    }
    assert guilty, 'the node imports rclpy: this test looks at the wrong files'
    rooms = ('flash_llm_ros/client/', 'flash_llm_ros/node/')
    assert {path for path in guilty if not path.startswith(rooms)} == set()


def test_one_file_imports_onnx_runtime() -> None:
    """It has to set a variable before; see there."""
    found = re.compile(r'^\s*(import|from) onnxruntime\b', re.MULTILINE)
    assert [str(path.relative_to(ROOT)) for path in SOURCES
            if path.suffix == '.py' and found.search(path.read_text())] == [
                'flash_llm_ros/onnx_runtime.py', 'test/node/test_nothing_leaves.py']


def can_fail(test: ast.FunctionDef) -> bool:
    """It has an assert or a `pytest.raises`, or calls a helper that is named for one."""
    calls = [node.func for node in ast.walk(test) if isinstance(node, ast.Call)]
    names = [getattr(call, 'attr', getattr(call, 'id', '')) for call in calls]
    return (any(isinstance(node, ast.Assert) for node in ast.walk(test))
            or any(name == 'raises' or name.startswith(('check_', 'assert_', 'expect_'))
                   for name in names))


def test_every_test_can_fail() -> None:
    tests = {f'{path.relative_to(ROOT)}: {node.name}': node
             for path in sorted((ROOT / 'test').rglob('test_*.py'))
             for node in ast.walk(ast.parse(path.read_text()))
             if isinstance(node, ast.FunctionDef) and node.name.startswith('test_')}
    assert len(tests) > 500
    assert [name for name, node in tests.items() if not can_fail(node)] == []
