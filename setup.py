"""The Python package, its C++ core and the files that ROS looks for."""

from pathlib import Path
from runpy import run_path
from xml.etree import ElementTree

from setuptools import Distribution, Extension, find_packages, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

HERE = Path(__file__).resolve().parent
MANIFEST = ElementTree.parse(HERE / 'package.xml')
NAME = MANIFEST.findtext('name')
EXECUTABLE = 'flash_llm_node'
COMMANDS = run_path(str(HERE / NAME / 'cli/main.py'))['COMMANDS']     # of `flash_llm`


def requirements(name: str) -> list[str]:
    """Return the lines of requirements/<name>.txt without their comments."""
    lines = (HERE / 'requirements' / f'{name}.txt').read_text().splitlines()
    return [line for line in (text.partition('#')[0].strip() for text in lines) if line]


def files(folder: str, pattern: str = '*') -> list[str]:
    """Return the files of a folder beside this file, as relative paths, which setuptools wants."""
    found = sorted((HERE / folder).glob(pattern))
    return [str(path.relative_to(HERE)) for path in found if path.is_file()]


def native_files(pattern: str) -> list[str]:
    """Return files of native/, absolute in the build folder of `colcon build --symlink-install`.

    colcon links the Python files and data_files into that folder, and nothing else.
    """
    found = files('native', pattern)
    return found if Path.cwd().resolve() == HERE else [str(HERE / name) for name in found]


def native_core() -> list[Extension]:
    """Return the extension. No -march: the kernels choose their instruction set at run time."""
    try:
        import pybind11
    except ImportError:
        headers = []            # apt's pybind11-dev lies in /usr/include
    else:
        headers = [pybind11.get_include()]
    return [Extension(
        f'{NAME}._native',
        native_files('*/*.cpp'),
        depends=native_files('**/*.hpp'),
        include_dirs=[str(HERE / 'native'), *headers],
        extra_compile_args=['-std=c++17', '-O3', '-g0', '-pthread', '-fvisibility=hidden',
                            '-ffp-contract=off'],       # kernels fuse where they say so
        extra_link_args=['-pthread'],
        language='c++',
    )]


class DataDistribution(Distribution):
    """Installs data_files in editable mode, too: setuptools asks there for this missing method."""

    def has_data(self) -> bool:
        return self.has_data_files()


class BuildNative(build_ext):
    """Says what the core needs when it cannot be compiled."""

    def build_extension(self, extension: Extension) -> None:
        try:
            super().build_extension(extension)
        except Exception as error:
            raise CompileError(
                f'{NAME}: the C++ core could not be compiled (messages above). It needs a C++17 '
                'compiler (apt: g++), the headers of Python (apt: python3-dev) and those of '
                'pybind11 (apt: pybind11-dev, pip: pybind11).'
            ) from error


class InstallData(Distribution().get_command_class('install_data')):
    """Lets `ros2 run` and launch find the node after pip, too, which knows only the folder bin/.

    Under colcon there is no wheel, and setup.cfg has sent the executables to the right folder.
    """

    def run(self) -> None:
        super().run()
        if self.distribution.get_command_obj('bdist_wheel', create=False) is None:
            return
        launcher = Path(self.install_dir, 'lib', NAME, EXECUTABLE)
        launcher.parent.mkdir(parents=True, exist_ok=True)
        launcher.write_text(
            f'#!/bin/sh\nexec "$(dirname "$(readlink -f "$0")")/../../bin/{EXECUTABLE}" "$@"\n'
        )
        launcher.chmod(0o755)
        self.outfiles.append(str(launcher))


setup(
    name=NAME,
    version=MANIFEST.findtext('version'),
    description=' '.join(MANIFEST.findtext('description').split()),
    license=MANIFEST.findtext('license'),
    maintainer=MANIFEST.findtext('maintainer'),
    maintainer_email=MANIFEST.find('maintainer').get('email'),
    project_urls={url.get('type'): url.text for url in MANIFEST.findall('url')},
    python_requires='>=3.10',
    packages=find_packages(include=[NAME, f'{NAME}.*']),
    package_data={'': ['*.txt', '*.xml', 'presets/*.yaml']},
    ext_modules=native_core(),
    cmdclass={'build_ext': BuildNative, 'install_data': InstallData},
    data_files=[
        ('share/ament_index/resource_index/packages', [f'resource/{NAME}']),
        (f'share/{NAME}', ['package.xml']),
        (f'share/{NAME}/launch', files('launch')),
        (f'share/{NAME}/config', files('config')),
        (f'share/{NAME}/examples', files('examples')),
    ],
    install_requires=requirements('runtime'),
    extras_require={
        'convert': requirements('convert'),
        'replay': requirements('replay'),
        'serve': requirements('serve'),
        'structured': requirements('structured'),
        'test': [name for kind in ('convert', 'replay', 'serve', 'structured', 'test')
                 for name in requirements(kind)],
    },
    entry_points={
        'console_scripts': [
            f'flash_llm = {NAME}.cli.main:main',
            f'{EXECUTABLE} = {NAME}.node.main:main',
        ],
        'ros2cli.command': [f'flash_llm = {NAME}.cli.ros2_verbs:FlashLlmCommand'],
        'ros2cli.extension_point': [f'flash_llm.verb = {NAME}.cli.ros2_verbs:Verb'],
        'flash_llm.verb': [
            f'{name} = {NAME}.cli.ros2_verbs:{name.capitalize()}Verb' for name in COMMANDS],
    },
    distclass=DataDistribution,
    zip_safe=False,
)
