"""The forward pass: tokens in, logits out, layer after layer."""

import numpy as np
from numpy.typing import NDArray

from flash_llm_ros.engine.memory.window import Window
from flash_llm_ros.engine.model.attention_part import AttentionPart
from flash_llm_ros.engine.model.feed_forward.block import FeedForwardBlock
from flash_llm_ros.engine.model.observer import ForwardObserver
from flash_llm_ros.model_spec import ModelSpec


class Model:
    """Attention, feed-forward block and window of one flash store."""

    def __init__(self, spec: ModelSpec, attention: AttentionPart, feed_forward: FeedForwardBlock,
                 window: Window, chunk: int, logits_rows: int = 1) -> None:
        """`logits_rows` is for how many tokens at once logits are computed at most."""
        self.spec, self.attention, self.window = spec, attention, window
        self.feed_forward, self.chunk = feed_forward, chunk
        self.logits = np.zeros((logits_rows, spec.embedding.vocab_size), np.float32)
        self.observer: ForwardObserver | None = None
        self.length = 0     # tokens whose keys and values the last request has computed
        self.end = 0        # of all that were since position 0, going back left out

    def forward(self, tokens: NDArray[np.int64], position: int, dense: bool,
                logits: NDArray[np.float32] | None = None) -> None:
        """Run up to `chunk` tokens that stand at `position` and after.

        `dense` uses every neuron. `logits`, float32 [n, vocabulary], gets those of the last n
        tokens; None leaves the output head out.
        """
        count = len(tokens)
        self.feed_forward.begin(dense, logits is not None)
        self.window.embed(tokens, self.attention.hidden(0, count))
        self.run_layers(0, count, position, dense, logits)
        self.length = position + count

    def forward_embeddings(self, embeddings: NDArray[np.float32], position: int, dense: bool,
                           logits: NDArray[np.float32] | None = None) -> None:
        """The same of float32 [tokens, d] that stand in the place of tokens' embeddings."""
        count = len(embeddings)
        self.feed_forward.begin(dense, logits is not None)
        self.attention.hidden(0, count)[:] = embeddings
        self.run_layers(0, count, position, dense, logits)
        self.length = position + count

    def reach(self, count: int) -> int:
        """How many of the first `count` tokens in the KV cache others can follow now."""
        return self.attention.reach(count, self.end)

    def run_layers(self, first: int, count: int, position: int, dense: bool,
                   logits: NDArray[np.float32] | None) -> None:
        """From layer `first` on, which `count` tokens enter as `attention.hidden` holds them."""
        self.end = position + count if position == 0 else max(self.end, position + count)
        for layer in range(first, self.spec.layers):
            ffn_input, residual = self.attention.run(layer, count, position)
            active = self.feed_forward.run(layer, ffn_input, residual, dense)
            if self.observer is not None:
                self.observer.feed_forward(layer, ffn_input, active)
        if logits is not None:
            self.window.logits(self.attention.final_norm(count - len(logits), count), logits)
            if cap := self.spec.logit_cap:
                np.tanh(np.divide(logits, cap, out=logits), out=logits)
                logits *= cap
