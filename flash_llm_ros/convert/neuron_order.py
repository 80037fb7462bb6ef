"""The order of a layer's neurons on flash: those that tokens need together lie together.

Of ReLU models some neurons are active for many tokens, most for few. In the order of frequency
what a token needs lies in fewer groups, and nearer to each other.
"""

import numpy as np
from numpy.typing import NDArray

from flash_llm_ros.convert.ffn_weights import FfnWeights
from flash_llm_ros.convert.samples import Samples
from flash_llm_ros.store.flash_store import FlashStore
from flash_llm_ros.store.neuron_reader import NeuronReader
from flash_llm_ros.store.writer import Progress

_TOKENS = 6144      # of a layer: 6144 * 16384 float32 are 400 MB


def by_frequency(active: NDArray[np.bool_]) -> NDArray[np.int32]:
    """The most often active neurons first, int32 [ffn]; `active` is [tokens, ffn]."""
    return np.argsort(-active.sum(axis=0), kind='stable').astype(np.int32)


def frequency_orders(store: FlashStore, samples: Samples,
                     progress: Progress) -> list[NDArray[np.int32]]:
    """One order a layer, of what the recorded tokens activate."""
    found, count = [], store.manifest.model.layers
    with NeuronReader(store) as reader:
        for layer in range(count):
            weights = FfnWeights(reader, store.manifest, layer)
            found.append(by_frequency(weights.activations(samples.train(layer, _TOKENS)) != 0))
            progress('ordering neurons', layer + 1, count)
    return found
