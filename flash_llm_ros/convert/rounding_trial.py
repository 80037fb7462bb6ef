"""What rounding one section of a store further costs, measured on the model itself."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from flash_llm_ros.convert.ffn_weights import Array, FfnWeights
from flash_llm_ros.convert.losses import divergence, log_softmax
from flash_llm_ros.engine import Engine
from flash_llm_ros.engine.memory.window import Window
from flash_llm_ros.engine.model.feed_forward.block import FeedForwardBlock
from flash_llm_ros.engine.model.model import Model
from flash_llm_ros.store.codec import row_codec
from flash_llm_ros.store.flash_store import FlashStore
from flash_llm_ros.store.geometry import MODEL_WIDE, Section
from flash_llm_ros.store.neuron_reader import NeuronReader
from flash_llm_ros.store.rounding import rounded

_ROWS_AT_ONCE = 4096
_MEASURED_FOR_CHANGE = {'split': 'down', 'bundled': 'bundle'}


@dataclass(frozen=True)
class RoundedSection:
    """A section in another codec than its store has it in."""

    section: Section
    codec: str
    encoded: NDArray[np.uint8]      # [bundles, rows of one * row bytes]

    def decoded(self, bundles: slice | NDArray[np.int64] = slice(None)) -> Array:
        """Float32 [bundles, rows, row values]."""
        codec = row_codec(self.codec, self.section.codec.dim)
        rows = self.encoded[bundles].reshape(-1, codec.row_bytes)
        return codec.decode(rows).reshape(-1, self.section.rows, codec.dim)


class RoundedReader(NeuronReader):
    """Reads a layer of the store as if this section were stored in it."""

    def __init__(self, store: FlashStore, rounded: RoundedSection) -> None:
        super().__init__(store)
        self._rounded = rounded

    def bundles(self, name: str, layer: int = MODEL_WIDE) -> Array:
        if name == self._rounded.section.name:
            return self._rounded.decoded()
        return super().bundles(name, layer)


class ReplacedLayer:
    """A feed-forward block around another, one layer of which is computed from other weights."""

    def __init__(self, inner: FeedForwardBlock, layer: int, weights: FfnWeights,
                 codecs: tuple[str, str]) -> None:
        """`codecs`: of the rows that inputs and activations meet; the core rounds these, too."""
        self._inner, self.begin = inner, inner.begin
        self._layer, self._weights, self._codecs = layer, weights, codecs

    def run(self, layer: int, x: Array, out: Array, dense: bool) -> None:
        if layer == self._layer:
            of_input, of_activations = self._codecs
            h = self._weights.activations(rounded(x, of_input))
            out += rounded(h, of_activations) @ self._weights.down
            out = np.zeros_like(out)        # the layer is read all the same: it is in a stream
        self._inner.run(layer, x, out, dense)


class RoundedHead:
    """A window's embedding and head, rounded: the head, and the embedding where they are tied."""

    def __init__(self, window: Window, head: RoundedSection) -> None:
        self._window, self._head = window, head
        self._tied = head.section.name == 'embedding'

    def embed(self, tokens: NDArray[np.int64], out: Array) -> None:
        if self._tied:
            out[:] = self._head.decoded(tokens)[:, 0]
        else:
            self._window.embed(tokens, out)

    def logits(self, normed: Array, out: Array) -> None:
        self._window.logits(normed, out)    # read all the same: it is in a stream
        x = rounded(normed, self._head.codec)
        for first in range(0, self._head.section.bundles, _ROWS_AT_ONCE):
            some = slice(first, first + _ROWS_AT_ONCE)
            out[:, some] = x @ self._head.decoded(some)[:, 0].T


class RoundingTrial:
    """Reads a text again and again, each time with another section in another codec.

    Whatever is changed in a layer, were it the order of a sum, makes the layers behind it round
    their inputs otherwise, and answers diverge: by 0.002 nats a token from SmolLM2's first layer
    on, by nothing from its last one on. That is measured at three layers and taken off.
    """

    def __init__(self, store: FlashStore, engine: Engine, tokens: NDArray[np.int64]) -> None:
        """`tokens`: at most the engine's context."""
        self._store, self._model, self._tokens = store, engine.model, tokens
        self._exact = self._logits(engine.model)

    @cached_property
    def _any_change(self) -> tuple[list[int], list[float]]:
        """Layers, and what a change in each costs."""
        manifest = self._store.manifest
        last = manifest.model.layers - 1
        layers = sorted({0, last // 2, last})
        name = _MEASURED_FOR_CHANGE[manifest.layout]
        return layers, [self._mean(self._layer_logits(
            manifest.geometry.section(name, layer), None)) for layer in layers]

    def divergence(self, section: Section, codec: str, encoded: NDArray[np.uint8]) -> float:
        """Mean KL divergence in nats a token from the store as it is.

        `encoded`: the section in this codec, uint8 [bundles, rows of one * row bytes].
        """
        tried = RoundedSection(section, codec, encoded)
        if section.layer == MODEL_WIDE:
            return max(0.0, self._mean(self._head_logits(tried)))
        return max(0.0, self._mean(self._layer_logits(section, tried))
                   - float(np.interp(section.layer, *self._any_change)))

    def _mean(self, logits: Array) -> float:
        return float(divergence(self._exact, logits).mean())

    def _logits(self, model: Model) -> Array:
        """Log probabilities, float32 [tokens, vocabulary]."""
        found = np.empty((len(self._tokens), model.spec.embedding.vocab_size), np.float32)
        for start in range(0, len(self._tokens), model.chunk):
            part = self._tokens[start:start + model.chunk]
            model.forward(part, start, dense=True, logits=found[start:start + len(part)])
        return log_softmax(found)

    def _layer_logits(self, section: Section, tried: RoundedSection | None) -> Array:
        """With this section, or as the store has it, computed by NumPy."""
        with (NeuronReader(self._store) if tried is None else
              RoundedReader(self._store, tried)) as reader:
            weights = FfnWeights(reader, self._store.manifest, section.layer)
        codec = section.codec.name if tried is None else tried.codec
        codecs = {layer_section.name: layer_section.codec.name
                  for layer_section in self._store.manifest.geometry.sections
                  if layer_section.layer == section.layer} | {section.name: codec}
        # Columns of bundles are added, which needs no rounding of what they are multiplied with.
        met = ((codecs['bundle'], 'fp16') if section.name == 'bundle'
               else (codecs['gate_up'], codecs['down']))
        model = self._model
        block = ReplacedLayer(model.feed_forward, section.layer, weights, met)
        return self._logits(Model(model.spec, model.attention, block, model.window, model.chunk))

    def _head_logits(self, head: RoundedSection) -> Array:
        model = self._model
        window = RoundedHead(model.window, head)
        return self._logits(Model(model.spec, model.attention, model.feed_forward, window,
                                  model.chunk))
