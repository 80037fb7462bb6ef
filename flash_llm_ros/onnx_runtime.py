"""The one door to ONNX Runtime: `from flash_llm_ros.onnx_runtime import ort`.

Since 1.32 it keeps a data base in the user's cache folder and sends events to its maker, from its
import on. Only this variable stops that, and only where it is set before the library is loaded.
"""

import os

os.environ['ORT_DISABLE_TELEMETRY'] = '1'

import onnxruntime as ort

__all__ = ['TWO_BITS', 'ort']

# Matrices of 2 bits, which predictors may have: since 1.24, which Python 3.10 does not get.
TWO_BITS = tuple(map(int, ort.__version__.split('.')[:2])) >= (1, 24)
