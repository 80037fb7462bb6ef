"""What pip and colcon install, and what is said where there is no compiler."""

from importlib.metadata import distribution
import os
from pathlib import Path
import shutil
import subprocess
import sys
from zipfile import ZipFile

from catkin_pkg.packages import find_packages
import pytest
from ros_prefix import share_directory

ROOT = Path(__file__).resolve().parents[2]
NOT_SOURCES = shutil.ignore_patterns(
    '.*', '__pycache__', 'build', 'install', 'log', 'models', '*.egg-info', '*.so', 'results')


def clean_environment(**more: str) -> dict[str, str]:
    """Return an environment in which nothing but this Python's folder is known."""
    path = os.pathsep.join([str(Path(sys.prefix, 'bin')), os.defpath])
    return {'HOME': os.environ.get('HOME', '/'), 'PATH': path, **more}


def run(*command: str, cwd: Path, seconds: int = 110, **environment: str) -> str:
    done = subprocess.run(
        command, cwd=cwd, env=clean_environment(**environment), timeout=seconds, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.fixture(scope='module')
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the sources, free to be built in."""
    return shutil.copytree(ROOT, tmp_path_factory.mktemp('copy') / 'sources', ignore=NOT_SOURCES)


def package_files(sources: Path) -> set[str]:
    found = (sources / 'flash_llm_ros').rglob('*')
    return {str(path.relative_to(sources)) for path in found if path.is_file()}


def data_files(sources: Path) -> set[str]:
    names = {f'share/flash_llm_ros/{path.parent.name}/{path.name}'
             for folder in ('launch', 'config') for path in (sources / folder).iterdir()}
    assert {'share/flash_llm_ros/launch/flash_llm.launch.py'} <= names
    return names | {'share/flash_llm_ros/package.xml',
                    'share/ament_index/resource_index/packages/flash_llm_ros'}


def wheel_command(folder: Path) -> tuple[str, ...]:
    return (sys.executable, '-m', 'pip', 'wheel', '--no-deps', '--no-index',
            '--no-build-isolation', '--wheel-dir', str(folder), '.')


def test_without_a_compiler_a_sentence_says_what_is_missing(sources: Path, tmp_path: Path) -> None:
    done = subprocess.run(wheel_command(tmp_path), cwd=sources, capture_output=True, text=True,
                          env=clean_environment(CC='false', CXX='false'), timeout=110)
    assert done.returncode != 0
    assert ('flash_llm_ros: the C++ core could not be compiled (messages above). It needs a C++17 '
            'compiler') in done.stdout + done.stderr
    assert not list(tmp_path.glob('*.whl'))


def test_a_wheel_is_whole(sources: Path, tmp_path: Path) -> None:
    """By a compiler that only writes empty files: what it makes is tested everywhere else."""
    compiler = tmp_path / 'compiler'
    compiler.write_text('#!/bin/sh\nwhile [ "$1" != -o ]; do shift; done\n: > "$2"\n')
    compiler.chmod(0o755)
    run(*wheel_command(tmp_path), cwd=sources, CC=str(compiler), CXX=str(compiler))
    with ZipFile(next(tmp_path.glob('*.whl'))) as wheel:
        modes = {item.filename: item.external_attr >> 16 for item in wheel.infolist()}
    assert len([name for name in modes if name.endswith('.so')]) == 1
    assert package_files(sources) <= modes.keys()
    installed = {name.partition('.data/data/')[2] for name in modes}
    assert data_files(sources) <= installed
    launcher = next(name for name in modes if name.endswith('/lib/flash_llm_ros/flash_llm_node'))
    assert modes[launcher] & 0o111 == 0o111


def test_this_environment_has_the_compiled_core() -> None:
    import flash_llm_ros._native

    assert Path(flash_llm_ros._native.__file__).suffix == '.so'


@pytest.mark.parametrize('name', ['flash_llm', 'flash_llm_node'])
def test_entry_points_can_be_called(name: str) -> None:
    points = distribution('flash_llm_ros').entry_points.select(group='console_scripts', name=name)
    assert [callable(point.load()) for point in points] == [True]


def test_this_environment_has_the_files_that_ros_looks_for() -> None:
    share = share_directory('flash_llm_ros')
    for folder in ('launch', 'config'):
        for path in (ROOT / folder).glob('*.*'):
            installed = share / folder / path.name
            assert installed.read_text() == path.read_text(), 'install flash_llm_ros again'
    prefix = share.parents[1]
    assert (prefix / 'share/ament_index/resource_index/packages/flash_llm_ros').is_file()
    assert os.access(prefix / 'lib/flash_llm_ros/flash_llm_node', os.X_OK)


OVERLAY_CHECK = """
import flash_llm_msgs, flash_llm_ros._native
from ament_index_python.packages import get_package_share_directory
from flash_llm_msgs.msg import TokenChunk
from rclpy.serialization import deserialize_message, serialize_message
chunk = TokenChunk(request_id='7', text='\\u00e9')
assert deserialize_message(serialize_message(chunk), TokenChunk) == chunk
for path in (flash_llm_msgs.__file__, flash_llm_ros._native.__file__,
             get_package_share_directory('flash_llm_ros')):
    print(path)
"""


@pytest.mark.slow
@pytest.mark.timeout(580)
def test_colcon_builds_both_packages_into_an_overlay(sources: Path, tmp_path: Path) -> None:
    """In a clean workspace with the two links of the README, by a plain `colcon build`."""
    prefix = sys.prefix
    if not Path(prefix, 'share/ament_cmake').is_dir():
        pytest.skip('ROS 2 is not installed as wheels in this Python environment')
    ros = {'AMENT_PREFIX_PATH': prefix, 'CMAKE_PREFIX_PATH': prefix}
    home = {'HOME': str(tmp_path / 'home')}
    link = next(line.strip() for line in (ROOT / 'README.md').read_text().splitlines()
                if 'ln -s' in line)
    run('bash', '-c', link, cwd=sources, **home)
    workspace = tmp_path / 'home/ros_ws'
    names = ['flash_llm_msgs', 'flash_llm_ros']
    assert run('colcon', 'list', '--names-only', cwd=workspace, **home).split() == names
    # As rosdep finds packages.
    assert sorted(package.name for package in find_packages(str(workspace / 'src')).values()) == (
        names)
    run('colcon', 'build', '--event-handlers', 'console_direct+',
        '--cmake-args', '-GNinja', f'-DPython3_EXECUTABLE={sys.executable}',
        f'-DCMAKE_PROJECT_INCLUDE={sources}/flash_llm_msgs/wheelfix.cmake',
        cwd=workspace, seconds=500, **ros, **home)
    overlay = workspace / 'install'
    printed = run(
        'bash', '-c', 'source "$0"/local_setup.bash && exec "$1" -c "$2"',
        str(overlay), sys.executable, OVERLAY_CHECK, cwd=tmp_path, **ros)
    paths = printed.split()
    assert len(paths) == 3
    assert all(Path(path).is_relative_to(overlay) for path in paths), printed
    package = overlay / 'flash_llm_ros'
    found = {str(path.relative_to(package)) for path in package.rglob('*')}
    assert data_files(sources) <= found
    site = f'lib/python{sys.version_info[0]}.{sys.version_info[1]}/site-packages'
    assert {f'{site}/{name}' for name in package_files(sources)} <= found
    for name in ('flash_llm', 'flash_llm_node'):
        assert os.access(package / 'lib/flash_llm_ros' / name, os.X_OK)
