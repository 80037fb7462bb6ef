"""Builds the ament_cmake package into a wheel, where ROS 2 comes from wheels and not from apt.

colcon and apt users never come here: their build is CMakeLists.txt alone.
"""

from collections import defaultdict
import os
from pathlib import Path
import shutil
import subprocess
import sys
from xml.etree import ElementTree

from setuptools import Distribution, setup
from setuptools.command.build import build

HERE = Path(__file__).resolve().parent
MANIFEST = ElementTree.parse(HERE / 'package.xml')
NAME = MANIFEST.findtext('name')


def ros_prefix() -> Path:
    """Return the folder that holds ROS's lib/ and share/: the environment of the ROS wheels."""
    try:
        import ament_package
    except ImportError as error:
        sys.exit(
            f'{NAME}: ROS 2 is not installed in this Python environment ({sys.prefix}). Install '
            f'requirements/ros.txt first and build with --no-build-isolation. ({error})'
        )
    return Path(ament_package.__file__).resolve().parents[4]


class BinaryDistribution(Distribution):
    """A wheel for one platform, although setuptools itself compiles nothing."""

    def has_ext_modules(self) -> bool:
        return True


class CMakeBuild(build):
    """Runs CMake and hands what it installs to the wheel.

    It replaces `build` and not `build_py`, which setuptools skips where there are no packages.
    """

    def run(self) -> None:
        work = Path(self.build_temp).resolve()
        stage = work / 'stage'
        shutil.rmtree(stage, ignore_errors=True)
        self._install_with_cmake(work / 'cmake', stage)
        self._collect_python(stage)
        self._collect_data(stage)

    def _install_with_cmake(self, work: Path, stage: Path) -> None:
        prefix = ros_prefix()
        search = os.pathsep.join([str(prefix / 'bin'), os.environ.get('PATH', os.defpath)])
        env = dict(
            os.environ, AMENT_PREFIX_PATH=str(prefix), CMAKE_PREFIX_PATH=str(prefix), PATH=search
        )
        cmake = shutil.which('cmake', path=search)
        if cmake is None:
            sys.exit(f'{NAME}: cmake is missing. `pip install "cmake<4" ninja` provides it.')
        configure = [
            '-S', HERE, '-B', work, '-GNinja',
            '-DBUILD_TESTING=OFF',
            '-DCMAKE_BUILD_TYPE=Release',
            f'-DPython3_EXECUTABLE={sys.executable}',
            f'-DCMAKE_INSTALL_PREFIX={stage}',
            f'-DCMAKE_PROJECT_INCLUDE={HERE / "wheelfix.cmake"}',
        ]
        for arguments in (configure, ['--build', work], ['--install', work]):
            subprocess.check_call([cmake, *map(str, arguments)], env=env)

    def _collect_python(self, stage: Path) -> None:
        package = next(stage.glob(f'lib/python3*/site-packages/{NAME}'))
        target = Path(self.build_lib) / NAME
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(package, target, ignore=shutil.ignore_patterns('__pycache__'))

    def _collect_data(self, stage: Path) -> None:
        """lib/, share/ and include/ go to the same folders of the environment's prefix."""
        data = defaultdict(list)
        for file in sorted(stage.rglob('*')):
            if file.is_file() and 'site-packages' not in file.parts:
                data[str(file.parent.relative_to(stage))].append(os.path.relpath(file, HERE))
        self.distribution.data_files = sorted(data.items())


setup(
    name=NAME,
    version=MANIFEST.findtext('version'),
    description=MANIFEST.findtext('description'),
    license=MANIFEST.findtext('license'),
    maintainer=MANIFEST.findtext('maintainer'),
    maintainer_email=MANIFEST.find('maintainer').get('email'),
    project_urls={url.get('type'): url.text for url in MANIFEST.findall('url')},
    python_requires='>=3.10',
    packages=[],
    distclass=BinaryDistribution,
    cmdclass={'build': CMakeBuild},
)
