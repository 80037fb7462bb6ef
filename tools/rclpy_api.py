"""Prints what the rclpy of one ROS distribution lacks and another one has, as YAML.

    python tools/rclpy_api.py humble=SOURCE jazzy=SOURCE kilted=SOURCE

A SOURCE is a folder with rclpy's Python files. Names and arguments' names are taken, of the modules
that this package uses; test/package/test_rclpy_api.py compares them with what it uses of them.
"""

import argparse
import ast
from collections.abc import Iterator
from pathlib import Path
import re
import typing

MODULES = (
    '__init__', 'action/__init__', 'action/client', 'action/server', 'callback_groups', 'client',
    'clock', 'context', 'duration', 'exceptions', 'executors', 'impl/rcutils_logger',
    'lifecycle/__init__', 'lifecycle/node', 'node', 'parameter', 'publisher', 'qos',
    'serialization', 'service', 'signals', 'subscription', 'task', 'topic_endpoint_info',
    'utilities',
)
IMPORTED = '~'      # before what is there, but not meant for others
EXPORTS = ('__init__', 'action/__init__', 'exceptions', 'lifecycle/__init__', 'signals')
# node/lifecycle_guard.py uses these private ones, to which rclpy has no other door.
PRIVATE = ('_state_machine', '_service_change_state')


def facts(source: Path) -> Iterator[str]:
    """`module:name`, `Class.member` and `Class.member(argument)`, all that is there."""
    for module in MODULES:
        where = f'rclpy.{module.replace("/", ".")}'.removesuffix('.__init__')
        for statement in _statements(ast.parse((source / f'{module}.py').read_text()).body):
            if isinstance(statement, ast.ImportFrom):
                for alias in statement.names:
                    yield f'{"" if module in EXPORTS else IMPORTED}{where}:{alias.name}'
            for name in _names(statement):
                yield f'{where}:{name}'
            if isinstance(statement, ast.ClassDef):
                if not {'TypedDict', 'Protocol'} & {ast.unparse(base) for base in statement.bases}:
                    yield f'{statement.name}'
                    yield from _members(statement)
            elif isinstance(statement, ast.FunctionDef):
                yield from _arguments(f'{where}:{statement.name}', statement)


def _statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """With those of `if TYPE_CHECKING` and of its `else`."""
    for statement in body:
        if isinstance(statement, ast.If):
            yield from _statements([*statement.body, *statement.orelse])
        else:
            yield statement


def _names(statement: ast.stmt) -> list[str]:
    if isinstance(statement, ast.ClassDef | ast.FunctionDef):
        return [statement.name]
    targets = (statement.targets if isinstance(statement, ast.Assign) else
               [statement.target] if isinstance(statement, ast.AnnAssign) else [])
    return [target.id for target in targets if isinstance(target, ast.Name)]


def _members(owner: ast.ClassDef) -> Iterator[str]:
    for statement in owner.body:
        for name in _names(statement):
            yield f'{owner.name}.{name}'
        if isinstance(statement, ast.FunctionDef):
            yield from _arguments(f'{owner.name}.{statement.name}', statement)
    for node in ast.walk(owner):        # set in a method
        if (isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)
                and isinstance(node.value, ast.Name) and node.value.id == 'self'):
            yield f'{owner.name}.{node.attr}'


def _arguments(name: str, function: ast.FunctionDef) -> Iterator[str]:
    for argument in (*function.args.args, *function.args.kwonlyargs):
        if argument.arg != 'self':
            yield f'{name}({argument.arg})'
    if function.args.kwarg is not None:
        yield f'{name}(**)'


def _is_asked(fact: str) -> bool:
    """Public and rclpy's own, or one of the private ones that are used."""
    *_, name = parts = re.split(r'[.:(]', fact.replace('.__init__(', '(').strip(')'))
    return name in PRIVATE or not (
        fact.startswith(IMPORTED) or name == '**' or name in typing.__all__
        or re.search(r'[a-z:.]T$|^T$|Dictionary$|Args$|KWargs|:Msg$|:Srv$', fact)
        or any(part.startswith('_') or 'Handle' in part for part in parts))


def _lacks(fact: str, there: set[str], members: set[str]) -> bool:
    """`members`: of any class, as those who read code do not see of which one an object is."""
    owner = re.split(r'[.(]', fact)[0] if ':' not in fact else fact.partition('(')[0]
    if owner != fact and owner not in there:
        return False                # which says enough
    function = fact.partition('(')[0]
    if {fact, f'{IMPORTED}{fact}', f'{function}(**)'} & there or _member(fact) in members:
        return False
    return '(' not in fact or function in there or function.endswith('.__init__')


def _member(fact: str) -> str | None:
    name = fact.partition('.')[2]
    return None if ':' in fact or not name or name.startswith('__init__') else name


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('sources', nargs='+', metavar='DISTRO=SOURCE')
    found = {}
    for source in parser.parse_args().sources:
        distro, _, folder = source.partition('=')
        found[distro] = set(facts(Path(folder)))
    everything = sorted(filter(_is_asked, set().union(*found.values())))
    for distro, there in found.items():
        print(f'{distro}:')
        members = set(filter(None, map(_member, there)))
        for fact in everything:
            if _lacks(fact, there, members):
                print(f'- {fact}')


if __name__ == '__main__':
    main()
