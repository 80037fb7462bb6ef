"""Manifests, versions, requirements and interfaces that lie in several files agree."""

import ast
from importlib.metadata import metadata, packages_distributions, requires, version
from pathlib import Path
import re
import sys

from catkin_pkg.changelog import get_changelog_from_path
from catkin_pkg.package import Package, parse_package
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import parse as parse_version
import pytest
from ros_prefix import share_directory

from flash_llm_ros.store.errors import ErrorCode

ROOT = Path(__file__).resolve().parents[2]
MESSAGES = ROOT / 'flash_llm_msgs'
INTERFACES = sorted(
    str(path.relative_to(MESSAGES)) for kind in ('msg', 'srv', 'action')
    for path in (MESSAGES / kind).glob(f'*.{kind}')
)


def manifest(folder: Path) -> Package:
    warnings: list[str] = []
    package = parse_package(str(folder), warnings=warnings)
    assert warnings == []
    return package


@pytest.mark.parametrize(
    ('folder', 'build_type'), [(ROOT, 'ament_python'), (MESSAGES, 'ament_cmake')])
def test_manifests_are_valid(folder: Path, build_type: str) -> None:
    package = manifest(folder)
    package.validate()
    assert package.package_format == 3
    assert package.get_build_type() == build_type
    assert package.licenses == ['Apache-2.0']


def released(folder: Path) -> str:
    """Return the newest version of a changelog, as catkin_prepare_release and bloom read it."""
    changelog = get_changelog_from_path(str(folder), manifest(folder).name)
    return max(changelog.foreach_version(), key=lambda entry: parse_version(entry[0]))[0]


def test_versions_agree() -> None:
    found = {
        'package.xml': manifest(ROOT).version,
        'flash_llm_msgs/package.xml': manifest(MESSAGES).version,
        'setup.py': version('flash_llm_ros'),
        'flash_llm_msgs/setup.py': version('flash_llm_msgs'),
        'CHANGELOG.rst': released(ROOT),
        'flash_llm_msgs/CHANGELOG.rst': released(MESSAGES),
    }
    assert len(set(found.values())) == 1, found


@pytest.mark.parametrize('name', ['flash_llm_ros', 'flash_llm_msgs'])
def test_maintainer_and_urls_are_those_of_package_xml(name: str) -> None:
    (person,) = manifest(ROOT).maintainers
    urls = {f'{url.type}, {url.url}' for url in manifest(ROOT).urls}
    (copied,) = manifest(MESSAGES).maintainers
    assert (copied.name, copied.email) == (person.name, person.email), 'make manifests'
    assert {f'{url.type}, {url.url}' for url in manifest(MESSAGES).urls} == urls, 'make manifests'
    installed = metadata(name)
    assert installed['Maintainer'] == person.name
    assert installed['Maintainer-email'] == person.email
    assert set(installed.get_all('Project-URL')) == urls


def test_error_codes_are_the_constants_of_the_message() -> None:
    from flash_llm_msgs.msg import EngineError

    text = (MESSAGES / 'msg/EngineError.msg').read_text()
    written = {name: int(number) for name, number in re.findall(r'uint16 (\w+) = (\d+)', text)}
    assert len(written) > 10
    assert written == {code.name: int(code) for code in ErrorCode}
    assert written == {name: getattr(EngineError, name) for name in written}


def test_every_interface_is_built() -> None:
    rules = (MESSAGES / 'CMakeLists.txt').read_text()
    listed = re.findall(r'"((?:msg|srv|action)/\w+\.\w+)"', rules)
    assert sorted(listed) == INTERFACES


@pytest.mark.parametrize('name', INTERFACES)
def test_installed_interfaces_are_those_of_the_sources(name: str) -> None:
    installed = share_directory('flash_llm_msgs') / name
    assert installed.read_text() == (MESSAGES / name).read_text(), 'build flash_llm_msgs again'


def imported(folder: Path) -> set[str]:
    """Return the top-level packages that the Python files of a folder import anywhere."""
    found = set()
    for path in folder.rglob('*.py'):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found |= {alias.name.partition('.')[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                found.add(node.module.partition('.')[0])
    return found - set(sys.stdlib_module_names) - {'flash_llm_ros'}


def declared_distributions(*extras: str) -> set[str]:
    """Return the distributions that pip installs with flash_llm_ros[extras]."""
    wanted = (Requirement(line) for line in requires('flash_llm_ros'))
    return {
        canonicalize_name(requirement.name) for requirement in wanted
        if requirement.marker is None
        or any(requirement.marker.evaluate({'extra': extra}) for extra in extras)
    }


# Its entry points are only looked up by ros2cli itself, where that is installed.
PLUGIN_OF = {'ros2cli'}
# constraint_helper.py finds these in its own folder, without the package around them.
BESIDE = {'constraint_grammar', 'json_schema'}


@pytest.mark.parametrize('folder', ['flash_llm_ros', 'launch'])
def test_what_is_imported_is_required(folder: str) -> None:
    ros = {dependency.name for dependency in manifest(ROOT).exec_depends}
    pip = declared_distributions('convert', 'replay', 'serve', 'structured')
    providers = packages_distributions()
    undeclared = {
        name for name in imported(ROOT / folder) - ros - PLUGIN_OF - BESIDE
        if not {canonicalize_name(provider) for provider in providers.get(name, [])} & pip
    }
    assert undeclared == set()


def test_ros_wheels_are_no_requirement_of_the_package() -> None:
    """Users of apt ROS have no distributions of these names."""
    names = declared_distributions('convert', 'replay', 'test')
    assert {'numpy', 'gguf', 'rosbags', 'pytest'} <= names
    assert [name for name in names if 'ros-jazzy' in name] == []
