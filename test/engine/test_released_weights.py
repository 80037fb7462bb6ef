"""Weights that ONNX Runtime has packed are given back, those that it still reads are kept."""

import mmap
from pathlib import Path

import numpy as np

from flash_llm_ros.engine.model.predictors import PredictorStack
from flash_llm_ros.store.flash_store import FlashStore
from flash_llm_ros.store.tensor_file import TensorFile


def test_only_what_is_read_stays(planted_store: Path) -> None:
    """A ReLU predictor's bias is read, its matrices are not: their pages are zeros now."""
    store = FlashStore.open(planted_store)
    predictors = PredictorStack(store)
    mappings = [each for each in predictors._loader._memory if isinstance(each, mmap.mmap)]
    assert len(mappings) == store.manifest.model.layers
    with TensorFile(store.path / store.predictor_weights) as tensors:
        for layer, memory in enumerate(mappings):
            left, offset = np.frombuffer(memory, np.uint8), 0
            for name in tensors.names():
                if not name.startswith(f'predictors.{layer}.'):
                    continue
                size = tensors.nbytes(name)
                here = left[offset:offset + size]
                if name.endswith('.bias'):
                    np.testing.assert_array_equal(here, tensors.read(name).view(np.uint8))
                elif size >= mmap.PAGESIZE:
                    assert not here.any(), name
                offset += -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
