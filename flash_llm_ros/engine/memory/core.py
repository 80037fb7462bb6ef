"""Which implementation of the neuron core runs: the C++ extension, or its NumPy twin."""

import logging
from types import ModuleType

from flash_llm_ros.engine import numpy_core
from flash_llm_ros.store.errors import ErrorCode, FlashLlmError
from flash_llm_ros.store.geometry import Geometry
from flash_llm_ros.store.manifest import FORMAT_VERSION

PREFERENCES = ('native', 'numpy')


def core_scratch_bytes(geometry: Geometry, threads: int, tokens: int) -> int:
    """The most that the native core allocates beside its slab, for up to ``tokens`` at once."""
    padded = -(-geometry.dim // 32) * 32
    row_bytes = min(section.codec.row_bytes for section in geometry.sections)
    step_rows = min(max(32768 // row_bytes // 16 * 16, 16), 512)
    each_thread = step_rows * (4 * padded + 128) + 16384    # some rows unpacked, and their results
    prepared = tokens * (5 * padded + 256)                  # inputs as the kernels want them
    sums = 16 * 4 * padded
    batch = 8192 * 48 + 4 * 65536                           # addresses and activations
    return threads * each_thread + prepared + sums + batch + geometry.group_bytes


def load_core_class(prefer: str = 'native') -> type:
    """The class NeuronCore of ``flash_llm_ros._native`` or of ``numpy_core``.

    Where the extension is asked for and missing, the NumPy twin is returned and a warning logged.
    ValueError if ``prefer`` is neither 'native' nor 'numpy'; FlashLlmError (STORE_VERSION) where
    the extension was compiled for another version of the store's format.
    """
    if prefer not in PREFERENCES:
        raise ValueError(f'prefer: {prefer!r} is wrong, must be one of {", ".join(PREFERENCES)}')
    if prefer == 'native':
        try:
            from flash_llm_ros import _native
        except ImportError as error:
            logging.getLogger(__name__).warning(
                'the native core is not available (%s); the NumPy core runs instead and is '
                'many times slower', error)
        else:
            _check_format(_native)
            return _native.NeuronCore
    return numpy_core.NeuronCore


def _check_format(extension: ModuleType) -> None:
    """One that was left over from before would read rows wrongly and answer NaN."""
    compiled = getattr(extension, 'STORE_FORMAT', 'one before 2')
    if compiled != FORMAT_VERSION:
        raise FlashLlmError(
            ErrorCode.STORE_VERSION,
            f'{extension.__file__} was compiled for store format {compiled}, this version needs '
            f'{FORMAT_VERSION}; build or install the package again.')
