"""Weights that ONNX Runtime has packed are given back, those that it still reads are kept."""

import mmap

import numpy as np
from planted_checkpoint import write_planted_checkpoint

from flash_llm_ros.convert.conversion import ConversionOptions, convert
from flash_llm_ros.engine.model.predictors import PredictorStack
from flash_llm_ros.store.flash_store import FlashStore
from flash_llm_ros.store.tensor_file import TensorFile


def test_only_what_is_read_stays(tmp_path):
    """A ReLU predictor's bias is read, its matrices are not: their pages are zeros now."""
    convert(write_planted_checkpoint(tmp_path / 'checkpoint'), tmp_path / 'planted.store',
            ConversionOptions(neurons='int8'), lambda what, done, total: None)
    store = FlashStore.open(tmp_path / 'planted.store')
    predictors = PredictorStack(store, 1, 0.5)
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
