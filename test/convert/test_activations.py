"""The activation functions that converting tries formats with, beside PyTorch's."""

import numpy as np
import pytest
import torch
from torch.nn import functional

from flash_llm_ros.activation import ACTIVATIONS

RIGHT = {'silu': functional.silu, 'gelu': functional.gelu, 'relu': functional.relu,
         'gelu_tanh': lambda z: functional.gelu(z, approximate='tanh'),
         'relu2': lambda z: functional.relu(z) ** 2,
         'clamped_swiglu': lambda z: z.clamp(max=7) * torch.sigmoid(1.702 * z.clamp(max=7))}


@pytest.mark.parametrize('name', ACTIVATIONS)
def test_an_activation_is_pytorch_s(name: str) -> None:
    z = np.linspace(-90, 90, 100_001).astype(np.float32)
    found = ACTIVATIONS[name](z, 0.0)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, RIGHT[name](torch.from_numpy(z)), rtol=2e-6, atol=1e-6)
