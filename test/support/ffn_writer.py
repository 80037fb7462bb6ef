"""Writes .ffn files, as the one that the package carries was written."""

from collections.abc import Iterable
import gzip
from pathlib import Path

import numpy as np
from safetensors.numpy import save


def write_ffn_file(path: Path, weights: Iterable[tuple[str, np.ndarray]],
                   relu_threshold: float) -> None:
    tensors = {'relu_threshold': np.array([relu_threshold], np.float32)}
    for name, rows in weights:
        steps = np.maximum(0.072 * np.sqrt(np.square(rows).mean(1)), np.abs(rows).max(1) / 127)
        steps = np.nextafter(steps.astype(np.float16), np.float16(np.inf))
        tensors[name] = np.rint(rows / steps[:, None].astype(np.float32)).astype(np.int8)
        tensors[f'{name}.step'] = steps
    path.write_bytes(gzip.compress(save(tensors)))
