"""One observer sees every layer of every pass, and what it sees is what was computed."""

from pathlib import Path

from generation_cases import PROMPTS, answer, opened
import numpy as np


class Notes:
    """Copies all that it is shown."""

    def __init__(self):
        self.seen = []

    def feed_forward(self, layer, ffn_input, active):
        self.seen.append((layer, ffn_input.copy(), None if active is None else active.copy()))


def test_every_layer_of_every_pass_is_seen(int8_store: Path) -> None:
    engine = opened(int8_store, prefill_chunk=8, lookup_tokens=0)
    expected = answer(engine, PROMPTS[1], max_tokens=5).tokens
    engine.model.observer = notes = Notes()
    found = answer(engine, PROMPTS[1], max_tokens=5)
    engine.close()
    assert found.tokens == expected
    count, layers = len(found.prompt_tokens), engine.model.spec.layers
    passes = [8] * (count // 8) + [count % 8] * (count % 8 > 0) + [1] * 4
    assert [(layer, len(x)) for layer, x, _ in notes.seen] == [
        (layer, tokens) for tokens in passes for layer in range(layers)]
    assert all(np.isfinite(x).all() and x.any() for _, x, _ in notes.seen)
    assert all(active is None for *_, active in notes.seen)
