"""What rounding one section of a store to int4 costs, measured on the model itself."""

from collections.abc import Callable
from functools import cached_property, partial

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

_MEASURED_FOR_CHANGE = {'split': 'down', 'bundled': 'bundle'}


class RoundedReader(NeuronReader):
    """Reads the sections of this name as if they had been stored in int4."""

    def __init__(self, store: FlashStore, name: str) -> None:
        super().__init__(store)
        self._name = name

    def bundles(self, name: str, layer: int = MODEL_WIDE) -> Array:
        found = super().bundles(name, layer)
        return int4_rounded(found) if name == self._name else found


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
    """A window's embedding and head, the head in int4, and the embedding where they are tied."""

    def __init__(self, window: Window, store: FlashStore, section: Section,
                 root: Array | None) -> None:
        """`root`: as `RowCodec.encode` asks for."""
        self._window, self._store, self._section, self._root = window, store, section, root
        self._tied = store.manifest.model.embedding.tied
        self._codec = row_codec('int4', section.codec.dim)

    def embed(self, tokens: NDArray[np.int64], out: Array) -> None:
        self._window.embed(tokens, out)
        if self._tied:
            out[:] = int4_rounded(out, self._root)

    def logits(self, normed: Array, out: Array) -> None:
        self._window.logits(normed, out)    # read all the same: it is in a stream
        x = rounded(normed, 'int4')
        for first, rows in self._encoded:
            out[:, first:first + len(rows)] = x @ self._codec.decode(rows).T

    @cached_property
    def _encoded(self) -> list[tuple[int, NDArray[np.uint8]]]:
        """Rows and where they begin: made once, for every pass."""
        with NeuronReader(self._store) as reader:
            return [(first, self._codec.encode(rows[:, 0], self._root))
                    for first, rows in reader.parts(self._section)]


class RoundingTrial:
    """Reads a text again and again, each time with another section in int4.

    Whatever is changed in a layer, were it the order of a sum, makes the layers behind it round
    their inputs otherwise, and answers diverge: by 0.002 nats a token from SmolLM2's first layer
    on, by nothing from its last one on. That is measured at three layers and taken off.
    """

    def __init__(self, store: FlashStore, engine: Engine, tokens: NDArray[np.int64],
                 head_root: Array | None = None) -> None:
        """`tokens`: at most the engine's context. `head_root`: the head is rounded with it."""
        self._store, self._model, self._tokens = store, engine.model, tokens
        self._head_root = head_root
        self._exact = self._logits(engine.model)

    @cached_property
    def _any_change(self) -> tuple[list[int], list[float]]:
        """Layers, and what a change in each costs."""
        manifest = self._store.manifest
        last = manifest.model.layers - 1
        layers = sorted({0, last // 2, last})
        name = _MEASURED_FOR_CHANGE[manifest.layout]
        return layers, [self._mean(self._layer_logits(
            manifest.geometry.section(name, layer), NeuronReader)) for layer in layers]

    def divergence(self, section: Section) -> float:
        """Mean KL divergence in nats a token from the store as it is.

        ValueError where a weight is more than int4 can hold.
        """
        try:
            if section.layer == MODEL_WIDE:
                return max(0.0, self._mean(self._head_logits(section)))
            logits = self._layer_logits(section, partial(RoundedReader, name=section.name))
        except ValueError as error:
            raise ValueError(f'{section.label}: {error}') from None
        return max(0.0, self._mean(logits) - float(np.interp(section.layer, *self._any_change)))

    def _mean(self, logits: Array) -> float:
        return float(divergence(self._exact, logits).mean())

    def _logits(self, model: Model) -> Array:
        """Log probabilities, float32 [tokens, vocabulary]."""
        found = np.empty((len(self._tokens), model.spec.embedding.vocab_size), np.float32)
        for start in range(0, len(self._tokens), model.chunk):
            part = self._tokens[start:start + model.chunk]
            model.forward(part, start, dense=True, logits=found[start:start + len(part)])
        return log_softmax(found)

    def _layer_logits(self, section: Section,
                      open_reader: Callable[[FlashStore], NeuronReader]) -> Array:
        with open_reader(self._store) as reader:
            weights = FfnWeights(reader, self._store.manifest, section.layer)
        codec = 'int4' if open_reader is not NeuronReader else section.codec.name
        codecs = {layer_section.name: layer_section.codec.name
                  for layer_section in self._store.manifest.geometry.sections
                  if layer_section.layer == section.layer} | {section.name: codec}
        # Columns of bundles are added, which needs no rounding of what they are multiplied with.
        met = ((codecs['bundle'], 'fp16') if section.name == 'bundle'
               else (codecs['gate_up'], codecs['down']))
        model = self._model
        block = ReplacedLayer(model.feed_forward, section.layer, weights, met)
        return self._logits(Model(model.spec, model.attention, block, model.window, model.chunk))

    def _head_logits(self, section: Section) -> Array:
        model = self._model
        window = RoundedHead(model.window, self._store, section, self._head_root)
        return self._logits(Model(model.spec, model.attention, model.feed_forward, window,
                                  model.chunk))


def int4_rounded(rows: Array, root: Array | None = None) -> Array:
    """float32 [..., d] as an int4 store holds it; `root` as of `RowCodec.encode`."""
    codec = row_codec('int4', rows.shape[-1])
    flat = np.ascontiguousarray(rows).reshape(-1, rows.shape[-1])
    return codec.decode(codec.encode(flat, root)).reshape(rows.shape)
