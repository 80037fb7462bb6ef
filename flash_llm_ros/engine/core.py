"""Which implementation of the neuron core runs: the C++ extension, or its NumPy twin."""

import logging

from flash_llm_ros.engine import numpy_core

PREFERENCES = ('native', 'numpy')


def load_core_class(prefer: str = 'native') -> type:
    """The class NeuronCore of ``flash_llm_ros._native`` or of ``numpy_core``.

    Where the extension is asked for and missing, the NumPy twin is returned and a warning logged.
    ValueError if ``prefer`` is neither 'native' nor 'numpy'.
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
            return _native.NeuronCore
    return numpy_core.NeuronCore
