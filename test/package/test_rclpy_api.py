"""What the package uses of rclpy is in the rclpy of Humble, Jazzy and Kilted; without ROS."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
LACKS = yaml.safe_load(Path(__file__).with_name('rclpy_lacks.yaml').read_text())
# LifecycleGuard's, to which rclpy has no other door; the table would tell where one was missing.
PRIVATE = {'_state_machine', '_service_change_state'}


def trees() -> dict[Path, ast.Module]:
    """Of all files that use rclpy, or objects of it."""
    found = {path: ast.parse(path.read_text())
             for folder in ('flash_llm_ros/node', 'flash_llm_ros/client', 'flash_llm_ros/cli',
                            'flash_llm_ros/report', 'examples', 'launch')
             for path in sorted((ROOT / folder).rglob('*.py'))}
    assert sum('rclpy' in path.read_text() for path in found) > 25
    return found


def own_names() -> set[str]:
    """Members that the package itself defines: of rclpy's is not said where they are used."""
    names = set()
    for path in (ROOT / 'flash_llm_ros').rglob('*.py'):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef):
                names.add(node.name)
            elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                names.add(node.target.id)
    return names


def uses(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Lines and facts as tools/rclpy_api.py writes them, of members without their class."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or '').startswith('rclpy'):
            yield from ((node.lineno, f'{node.module}:{alias.name}') for alias in node.names)
        elif isinstance(node, ast.Attribute):
            yield node.lineno, f'.{node.attr}'
            if ast.unparse(node.value) == 'rclpy':
                yield node.lineno, f'rclpy:{node.attr}'
        elif isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            name = (f'rclpy:{called[6:]}' if called.startswith('rclpy.') else
                    f'.{called.rpartition(".")[2]}' if '.' in called else f'{called}.__init__')
            yield from ((node.lineno, f'{name}({keyword.arg})') for keyword in node.keywords)


def missing(distro: str, trees: dict[Path, ast.Module], own: set[str]) -> list[str]:
    facts = set(LACKS[distro])
    facts |= {f'.{fact.partition(".")[2]}' for fact in facts if ':' not in fact and '.' in fact}
    return [f'{path}:{line}: {fact}' for path, tree in trees.items() for line, fact in uses(tree)
            if fact in facts and fact[1:] not in own]


@pytest.mark.parametrize('distro', LACKS)
def test_it_has_all_that_is_used(distro: str) -> None:
    assert missing(distro, trees(), own_names()) == []


@pytest.mark.parametrize(('code', 'distros'), [
    ('client.call(request, timeout_sec=1.0)', ['humble']),
    ('node.create_timer(1.0, look, autostart=False)', ['humble']),
    ('node.count_clients(name)', ['humble']),
    ('with rclpy.init() as context: pass\nfrom rclpy import InitContextManager',
     ['humble', 'jazzy']),
    ('executor.create_future()', ['humble', 'jazzy']),
    ('Node(name, enable_logger_service=True)', ['humble']),
    ('node.create_timer(1.0, look, clock=clock)', [])])
def test_what_one_lacks_is_found(code: str, distros: list[str]) -> None:
    used = {Path('a.py'): ast.parse(code)}
    assert [distro for distro in LACKS if missing(distro, used, set())] == distros


def test_private_members_are_few() -> None:
    """Each is one that may go with the next rclpy."""
    found = {node.attr for path, tree in trees().items() if 'rclpy' in path.read_text()
             for node in ast.walk(tree)
             if isinstance(node, ast.Attribute) and node.attr.startswith('_')
             and not node.attr.endswith('__') and ast.unparse(node.value) not in ('self', 'cls')}
    assert found - {'_exit', '_getframe'} == PRIVATE
