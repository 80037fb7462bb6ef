"""ONNX Runtime sessions whose matrices come from a tensor file and exist once in DRAM."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
import mmap
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flash_llm_ros.onnx_runtime import ort
from flash_llm_ros.store.errors import ErrorCode, FlashLlmError
from flash_llm_ros.store.graph_operators import check_operators
from flash_llm_ros.store.tensor_file import TensorFile

_FOLDER_KEY = 'session.model_external_initializers_file_folder_path'
_PAGE = mmap.PAGESIZE
Feeds = dict[str, NDArray[Any]]


class GraphLoader:
    """Loads graphs one after the other, so that at most one exists twice while it is packed."""

    def __init__(self, folder: str, threads: int, prepack: bool) -> None:
        self._folder, self._threads, self._prepack = folder, threads, prepack
        self._memory: list[Any] = []        # ONNX Runtime points into it for good

    def load(self, graph: bytes, name: str, tensors: TensorFile | None = None, prefix: str = '',
             probe: Callable[[], Feeds] | None = None) -> ort.InferenceSession:
        """A session of `graph`, called `name`, with the tensors whose names start with `prefix`.

        ONNX Runtime packs quantised matrices into copies of its own; the originals' pages are
        then given back. That it reads them no more is not documented, so it is tried, with all of
        them or else with each: `probe` returns inputs, and the outputs must stay the same bytes.
        Raises FlashLlmError: STORE_CORRUPT, READ_FAILED.
        """
        check_operators(graph, name)
        options = self._options()
        names = [] if tensors is None else [n for n in tensors.names() if n.startswith(prefix)]
        memory = self._share(options, tensors, names) if names else None
        with graph_errors(name):
            session = ort.InferenceSession(graph, options, providers=['CPUExecutionProvider'])
            if memory is not None and self._prepack and probe is not None:
                self._release(session, probe, memory, tensors, names)
        return session

    def _options(self) -> ort.SessionOptions:
        options = ort.SessionOptions()
        options.intra_op_num_threads = self._threads
        options.inter_op_num_threads = 1
        options.enable_cpu_mem_arena = False        # an arena only grows
        options.enable_mem_pattern = False
        # The graphs are written as they are to run; looking for better ones costs 40 kB a session.
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.log_severity_level = 3
        options.add_session_config_entry('session.intra_op.allow_spinning', '0')
        options.add_session_config_entry(_FOLDER_KEY, self._folder)
        if not self._prepack:
            options.add_session_config_entry('session.disable_prepacking', '1')
        return options

    def _share(self, options: ort.SessionOptions, tensors: TensorFile,
               names: list[str]) -> mmap.mmap:
        """Read tensors into one private mapping and hand them to ONNX Runtime without a copy."""
        size = sum(_aligned(tensors.nbytes(name)) for name in names)
        memory = mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        for name, array in _read(tensors, names, memory).items():
            value = ort.OrtValue.ortvalue_from_numpy(array)
            options.add_initializer(name, value)
            self._memory += [array, value]
        self._memory.append(memory)
        return memory

    def _release(self, session: ort.InferenceSession, probe: Callable[[], Feeds],
                 memory: mmap.mmap, tensors: TensorFile, names: list[str]) -> None:
        before = session.run(None, probe())

        def released(offset: int, size: int) -> bool:
            memory.madvise(mmap.MADV_DONTNEED, offset, size)    # reads as zeros from now on
            return all(map(np.array_equal, before, session.run(None, probe())))

        if released(0, len(memory)):
            return
        _read(tensors, names, memory)
        offset, view = 0, memoryview(memory)
        for name in names:      # a bias is never packed
            size = _aligned(tensors.nbytes(name))
            if not released(offset, size):
                tensors.read_into(name, view[offset:])
            offset += size


@contextmanager
def graph_errors(graph: str) -> Iterator[None]:
    """What ONNX Runtime finds wrong with a graph or its shapes is FlashLlmError(STORE_CORRUPT)."""
    try:
        yield
    except FlashLlmError:
        raise
    except Exception as error:      # ONNX Runtime raises classes of its own, all unrelated
        raise FlashLlmError(ErrorCode.STORE_CORRUPT, f'{graph} of the store cannot be run: '
                            f'{str(error).rstrip(".")}.') from None


def check_output(graph: str, found: NDArray[Any], shape: tuple[int, ...]) -> None:
    """Raise FlashLlmError(STORE_CORRUPT) unless a graph gave float32 of this shape."""
    if (found.dtype, found.shape) != (np.float32, shape):
        raise FlashLlmError(ErrorCode.STORE_CORRUPT,
                            f'{graph} of the store gives {found.dtype} {list(found.shape)}; it '
                            f'must be float32 {list(shape)}.')


def _read(tensors: TensorFile, names: list[str], memory: mmap.mmap) -> Feeds:
    arrays, offset, view = {}, 0, memoryview(memory)
    for name in names:
        arrays[name] = tensors.read_into(name, view[offset:])
        offset += _aligned(tensors.nbytes(name))
    return arrays


def _aligned(size: int) -> int:
    return -(-size // _PAGE) * _PAGE
