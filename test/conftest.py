"""What several test files share."""

import os
from pathlib import Path
import signal

os.environ.setdefault('OPENBLAS_NUM_THREADS', '1')      # as the commands do, before NumPy is there
os.environ['RUST_BACKTRACE'] = '0'      # of a panic: it takes 50 MB, which budgets would count
os.environ['ROS_PYTHON_CHECK_FIELDS'] = '1'     # as Humble's messages do always

from fault_fixtures import allocation_shim, shim, shimmed  # noqa: F401
from hypothesis import settings
from planted_checkpoint import write_planted_checkpoint
import pytest
from ros_fixtures import active_node  # noqa: F401
from tiny_checkpoint import converted, tiny_store, write_checkpoint

from bench.experts.upcycled import Upcycled
from flash_llm_ros.checkpoint.open import open_checkpoint
from flash_llm_ros.engine.memory.footprint import Footprint

# No assertion on wall time: a busy machine must not fail a test.
settings.register_profile('no_deadline', deadline=None)
settings.load_profile('no_deadline')

# A shell's background job ignores Ctrl-C, and so would every process that tests send one to.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

RELU_FFN = Path(__file__).parents[1] / 'resource/smollm2-135m-relu.ffn'
REAL_MODEL = Path(__file__).parents[1] / 'models/SmolLM2-135M-Instruct.Q4_1.gguf'


@pytest.fixture(scope='session', autouse=True)
def cache_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the KV cache goes that is kept, of nodes in other processes, too."""
    folder = tmp_path_factory.mktemp('cache')
    os.environ['XDG_CACHE_HOME'] = str(folder)
    return folder / 'flash_llm'


@pytest.fixture(autouse=True)
def no_earlier_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Budgets are those of a test's own process: what other tests have left is not counted."""
    monkeypatch.setattr(Footprint, '_bare', None)
    monkeypatch.setattr(Footprint, '_stays', 0)


@pytest.fixture(scope='session')
def real_gguf() -> Path:
    """SmolLM2-135M-Instruct as GGUF; a failure, not a skip, where it is missing."""
    if not REAL_MODEL.is_file():
        pytest.fail(f'{REAL_MODEL} is missing; `make test` fetches it before it runs the tests')
    return REAL_MODEL


@pytest.fixture
def checkpoint_folder(tmp_path: Path) -> Path:
    """A random llama checkpoint of the test's own, free to be damaged."""
    return write_checkpoint(tmp_path / 'checkpoint')


@pytest.fixture(scope='session')
def int8_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An int8 store beside its checkpoint; read only."""
    return tiny_store(tmp_path_factory.mktemp('int8'))


@pytest.fixture(scope='session')
def fp16_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An fp16 store, which loses nothing of its checkpoint; read only."""
    return tiny_store(tmp_path_factory.mktemp('fp16'), neurons='fp16')


@pytest.fixture(scope='session')
def gated_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A calibrated int8 store of a ReLU model beside its checkpoint; read only."""
    folder = tmp_path_factory.mktemp('gated')
    write_checkpoint(folder / 'checkpoint', hidden_act='relu')
    converted(folder / 'checkpoint', folder / 'gated.store', most_tokens=512)
    return folder / 'gated.store'


@pytest.fixture(scope='session')
def planted_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A calibrated int8 store of which a token needs few neurons; read only."""
    folder = tmp_path_factory.mktemp('planted')
    write_planted_checkpoint(folder / 'checkpoint')
    converted(folder / 'checkpoint', folder / 'planted.store')
    return folder / 'planted.store'


@pytest.fixture(scope='session')
def experts_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An int8 store of a random model with 8 experts a layer, 2 of them for a token; read only."""
    folder = tmp_path_factory.mktemp('experts')
    dense = open_checkpoint(write_checkpoint(folder / 'checkpoint'))
    return converted(Upcycled(dense, 8, 2), folder / 'experts.store').path


@pytest.fixture(scope='session')
def stores(int8_store: Path, planted_store: Path, experts_store: Path) -> dict[str, Path]:
    """A store for each mode, and one with experts."""
    return {'exact': int8_store, 'gated': planted_store, 'experts': experts_store}


@pytest.fixture(scope='session')
def real_store(real_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SmolLM2-135M converted as `flash_llm convert` does by default; read only."""
    path = tmp_path_factory.mktemp('real') / 'smollm2.store'
    converted(real_gguf, path)
    return path


@pytest.fixture(scope='session')
def real_relu_store(real_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SmolLM2-135M with the ReLU weights that the package carries, calibrated; read only."""
    path = tmp_path_factory.mktemp('relu') / 'relu.store'
    converted(real_gguf, path, ffn=RELU_FFN)
    return path
