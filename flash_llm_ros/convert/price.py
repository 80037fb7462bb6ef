"""What mode gated costs and saves: perplexity over exact mode's, and shares of what is read."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from flash_llm_ros.convert.losses import log_softmax
from flash_llm_ros.convert.perplexity_growth import Growth
from flash_llm_ros.engine import Engine
from flash_llm_ros.engine.model.feed_forward.gated import GatedFeedForward
from flash_llm_ros.engine.model.model import Model
from flash_llm_ros.store.flash_store import FlashStore
from flash_llm_ros.store.writer import Progress

Piece = NDArray[np.int64]       # token ids, no more than the engine's context


@dataclass(frozen=True)
class Price:
    """`growth` of perplexity, and which share of neurons and of their groups a token needs."""

    growth: Growth
    active_share: float
    groups_share: float


class ActiveShares:
    """Observes which neurons tokens use, and which groups these lie in."""

    def __init__(self, bundles_per_group: int) -> None:
        self._together = bundles_per_group
        self._neurons: list[float] = []
        self._groups: list[float] = []

    def feed_forward(self, layer: int, ffn_input: NDArray[np.float32],
                     active: NDArray[np.uint8] | None) -> None:
        if active is None:
            raise ValueError('a pass that uses every neuron has no active set')
        groups = np.maximum.reduceat(active, np.arange(0, len(active), self._together))
        self._neurons.append(float(np.count_nonzero(active) / len(active)))
        self._groups.append(float(np.count_nonzero(groups) / len(groups)))

    @property
    def neurons(self) -> float:
        return float(np.mean(self._neurons))

    @property
    def groups(self) -> float:
        return float(np.mean(self._groups))


def gated_price(engine: Engine, calibrated: FlashStore, pieces: list[Piece],
                progress: Progress) -> Price:
    """`engine` has the store of `calibrated` open, in exact mode. Gated, tokens come one by one."""
    gated = _gated_model(engine, calibrated)
    section = calibrated.manifest.geometry.section('bundle', 0)
    shares = gated.observer = ActiveShares(section.bundles_per_group)
    exact_losses, losses = [], []
    for done, piece in enumerate(pieces, 1):
        exact_losses.append(_losses(engine.model, piece, engine.model.chunk, dense=True))
        losses.append(_losses(gated, piece, 1, dense=False))
        progress('measuring', done, len(pieces))
    growth = Growth.of(np.concatenate(losses), np.concatenate(exact_losses))
    return Price(growth, shares.neurons, shares.groups)


def _gated_model(engine: Engine, calibrated: FlashStore) -> Model:
    """On the engine's attention and window."""
    block = GatedFeedForward(calibrated, 1)
    block.load()
    block.attach(engine.model.window)
    return Model(engine.model.spec, engine.model.attention, block, engine.model.window, 1)


def _losses(model: Model, piece: Piece, chunk: int, dense: bool) -> NDArray[np.float64]:
    """Nats that every token but the first cost to guess, float64 [tokens - 1]."""
    logits = np.empty((chunk, model.spec.embedding.vocab_size), np.float32)
    found = []
    for position in range(0, len(piece) - 1, chunk):
        tokens = piece[position:position + chunk]
        model.forward(tokens, position, dense, logits[:len(tokens)])
        following = piece[position + 1:position + 1 + len(tokens)]
        rows = log_softmax(logits[:len(following)])
        found.append(-rows[np.arange(len(following)), following])
    return np.concatenate(found).astype(np.float64)
