"""Python in a process of its own whose reads fail, come late or come damaged, as told."""

import os
from pathlib import Path
import subprocess
import sys

from core_cases import needs_uring
import pytest

from bench.faults.shim_library import build_shims

HERE = Path(__file__).parent

SHIMMED = """
import sys
sys.path.insert(0, {test!r})
import numpy as np
from core_cases import Setting, core_with
from core_oracle import write_neuron_file
from pathlib import Path
made = write_neuron_file(Path({path!r}), np.random.default_rng(1), 'int8', 64, 1024,
                         [(35, 0, 2), (45, 0, 1), (24, 0, 3)])
core_class = core_with({reader!r})
"""


def run_preloaded(library, code, *arguments, **settings):
    """What Python prints that runs this code with a library in front of the others."""
    environment = {**os.environ, 'LD_PRELOAD': f'{os.environ.get("LD_PRELOAD", "")} {library}',
                   'PYTHONPATH': os.pathsep.join(sys.path), **settings}
    done = subprocess.run([sys.executable, '-c', code, *arguments], env=environment, text=True,
                          capture_output=True, timeout=100)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope='session')
def shim(tmp_path_factory):
    return build_shims(tmp_path_factory.mktemp('shim'))


@pytest.fixture(scope='session')
def allocation_shim(tmp_path_factory):
    library = tmp_path_factory.mktemp('shim') / 'allocation_shim.so'
    subprocess.run(['c++', '-std=c++17', '-shared', '-fPIC', '-O1', '-o', str(library),
                    str(HERE / 'allocation_shim.cpp')], check=True)
    return library


@pytest.fixture(params=['threads', pytest.param('io_uring', marks=needs_uring)])
def shimmed(request, shim, tmp_path):
    """Run Python in a process of its own whose reads fail as told."""
    def run(code, **settings):
        setup = SHIMMED.format(test=str(HERE), path=str(tmp_path / 'neurons.bin'),
                               reader=request.param)
        return run_preloaded(shim, setup + code, **settings)
    run.first = 1 if request.param == 'threads' else 2      # io_uring is tried first
    return run
