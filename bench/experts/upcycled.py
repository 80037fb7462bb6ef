"""Writes a model with experts whose right answer is known: a dense one, each block copied many
times.

    python -m bench.experts.upcycled SmolLM2-135M-Instruct.Q4_1.gguf smollm2-experts.store

Every expert is the original's block with its neurons scaled up or down a little, each in its own
way; a token's experts have weights that add up to 1, so that their sum is nearly what the original
gives. The router is random: it reacts to the text, and to nothing else.
"""

from argparse import ArgumentParser, Namespace
from collections.abc import Iterable
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
import sys

import numpy as np
from numpy.typing import NDArray

from bench.support.command import Report, command, run
from flash_llm_ros.checkpoint.checkpoint import Checkpoint
from flash_llm_ros.checkpoint.open import open_checkpoint
from flash_llm_ros.convert.conversion import ConversionOptions, convert
from flash_llm_ros.model_spec import ExpertsSpec

_CHANGE = 0.03          # of a neuron's rows
_ROUTER_GAIN = 4.0      # standard deviation of scores where the block's input has one of 1


class Upcycled(Checkpoint):
    """A checkpoint made of a dense one with gates."""

    def __init__(self, base: Checkpoint, count: int = 16, active: int = 2) -> None:
        self._base = base
        self.path, self.files, self.family = base.path, base.files, base.family
        self.tokenizer_json, self.chat_template = base.tokenizer_json, base.chat_template
        self.special_tokens, self.doubts = base.special_tokens, base.doubts
        self.spec = replace(base.spec, name=f'{base.spec.name} x {count}', feed_forward=replace(
            base.spec.feed_forward, experts=ExpertsSpec(count, active)))
        self._whole = lru_cache(maxsize=3)(base.rows)

    def shape(self, name: str) -> tuple[int, ...]:
        count, part = self.spec.feed_forward.experts.count, name.rpartition('.')[2]
        if part == 'router':
            return count, self.spec.hidden_size
        if part.startswith('expert_'):
            return count, *self._base.shape(name.replace('expert_', ''))
        return self._base.shape(name)

    def stored_names(self) -> Iterable[str]:
        return self._base.stored_names()

    def _stored_rows(self, name: str, start: int, stop: int | None) -> NDArray[np.float32]:
        return self.rows(name, start, stop)

    def rows(self, name: str, start: int = 0, stop: int | None = None) -> NDArray[np.float32]:
        layer, _, part = name.rpartition('.')
        spec = self.spec
        if part == 'router':
            random = np.random.default_rng([int(layer.rpartition('.')[2]), 1])
            rows = random.standard_normal((spec.feed_forward.experts.count, spec.hidden_size))
            return (rows * _ROUTER_GAIN / spec.hidden_size ** 0.5).astype(np.float32)[start:stop]
        if not part.startswith('expert_'):
            return self._base.rows(name, start, stop)
        matrix = self._whole(f'{layer}.{part.removeprefix("expert_")}')
        chosen = range(spec.feed_forward.experts.count)[start:stop]
        return np.stack([self._changed(matrix, part, expert) for expert in chosen])

    def _changed(self, matrix: NDArray[np.float32], part: str, expert: int) -> NDArray[np.float32]:
        random = np.random.default_rng([expert, len(part)])
        scales = np.float32(1) + np.float32(_CHANGE) * random.choice(
            np.array([-1, 1], np.float32), self.spec.feed_forward.size)
        return matrix * (scales if part == 'expert_down' else scales[:, None])


def write(options: Namespace) -> Report:
    checkpoint = Upcycled(open_checkpoint(options.source), options.experts, options.active)
    store = convert(checkpoint, options.store, ConversionOptions(replace=True), lambda *_: None)
    return Report({'bytes': store.bytes}, f'{store.path}: {store.bytes / 1e6:.1f} MB')


def parser() -> ArgumentParser:
    parsed = command(__doc__)
    parsed.add_argument('source', type=Path, help='checkpoint of a dense model with gates')
    parsed.add_argument('store', type=Path, help='flash store to write')
    parsed.add_argument('--experts', type=int, default=16, help='of a layer (default: 16)')
    parsed.add_argument('--active', type=int, default=2, help='of a token (default: 2)')
    return parsed


if __name__ == '__main__':
    sys.exit(run(parser(), write))
