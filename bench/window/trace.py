"""Records which neurons or experts every token of a text uses, for bench.window.hit_rates: takes a
store of a gated model with a calibration, or of a mixture of experts.
"""

from argparse import ArgumentParser, Namespace
from dataclasses import dataclass, field
from pathlib import Path
import sys
import zipfile

import numpy as np
from numpy.typing import NDArray

from bench.support.command import Report, at_least, byte_size, command, run
from bench.window.replayer import Trace
from flash_llm_ros.cli.progress import Steps
from flash_llm_ros.engine import Engine, EngineConfig
from flash_llm_ros.store.flash_store import FlashStore


@dataclass(frozen=True)
class NeuronTrace:
    """bool [tokens, layers, neurons]; every `per_group` neighbours of a layer are one group.

    Of a mixture of experts [tokens, layers, experts], each of them one group.
    """

    model: str
    per_group: int
    active: NDArray[np.bool_]

    @property
    def layer_groups(self) -> int:
        return -(-self.active.shape[2] // self.per_group)

    def groups(self) -> Trace:
        """The groups of the model that each layer of each token uses, ascending."""
        layers = range(self.active.shape[1])
        return [[(np.unique(np.flatnonzero(token[layer]) // self.per_group)
                  + layer * self.layer_groups).tolist() for layer in layers]
                for token in self.active]

    def save(self, path: Path) -> None:
        with path.open('wb') as file:
            np.savez_compressed(file, model=self.model, per_group=self.per_group,
                                neurons=self.active.shape[2], bits=np.packbits(self.active, axis=2))

    @classmethod
    def load(cls, path: Path) -> 'NeuronTrace':
        """ValueError where the file is no trace; OSError."""
        try:
            with np.load(path) as data:
                active = np.unpackbits(data['bits'], axis=2, count=int(data['neurons']))
                return cls(str(data['model']), int(data['per_group']), active.astype(bool))
        except (ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise ValueError(f'{path} is no trace; `python -m bench.window.trace` makes one'
                             ) from error


@dataclass
class Recorder:
    """An observer of the forward pass: keeps the active neurons, a bit each."""

    layers: range       # those that are gated, or have experts
    rows: list[NDArray[np.uint8]] = field(default_factory=list)

    def feed_forward(self, layer: int, ffn_input: NDArray[np.float32],
                     active: NDArray[np.uint8] | None) -> None:
        if layer not in self.layers:
            return
        if active is None:
            raise ValueError('every neuron was used; a trace needs a gated model and mode gated, '
                             'or experts')
        self.rows.append(active.astype(bool))


def record(engine: Engine, text: str, most_tokens: int, steps: Steps) -> NeuronTrace:
    """Run a text through an engine in mode gated, or of experts, token by token."""
    tokens = np.array(engine.tokenize(text)[:most_tokens], np.int64)
    if not len(tokens):
        raise ValueError('the text has no tokens')
    model = engine.model
    experts = model.spec.feed_forward.experts
    layers = range(experts.dense_layers if experts else 0, model.spec.layers)
    model.observer = recorder = Recorder(layers)
    try:
        for index in range(len(tokens)):
            model.forward(tokens[index:index + 1], index % engine.config.context_length,
                          dense=False)
            steps('reading text', index + 1, len(tokens))
    finally:
        model.observer = None
    active = np.array(recorder.rows).reshape(len(tokens), len(layers), -1)
    bundles = next((section for section in engine.geometry.sections if section.name == 'bundle'),
                   None)
    return NeuronTrace(engine.model_name, bundles.bundles_per_group if bundles else 1, active)


def measure(options: Namespace) -> Report:
    text = options.text.read_text('utf-8')
    experts = FlashStore.open(options.store).manifest.model.feed_forward.experts
    engine = Engine.open(EngineConfig(options.store, options.budget,
                                      'exact' if experts else 'gated', context_length=512,
                                      lock_memory=False))
    try:
        with Steps() as steps:
            trace = record(engine, text, options.tokens, steps)
    finally:
        engine.close()
    trace.save(options.out)
    share, tokens = float(trace.active.mean()), len(trace.active)
    return Report({'model': trace.model, 'tokens': tokens, 'neurons_used': share},
                  f'{options.out}: {tokens} tokens of {trace.model}, {share:.1%} of the '
                  f'{"experts" if experts else "neurons"} used, '
                  f'{options.out.stat().st_size / 1e6:.1f} MB')


def parser() -> ArgumentParser:
    result = command(__doc__)
    result.add_argument('store', type=Path)
    result.add_argument('--text', type=Path, required=True, help='a file of UTF-8 text')
    result.add_argument('--out', type=Path, required=True, help='the trace to write (.npz)')
    result.add_argument('--tokens', type=at_least(1), default=256, help='at most (default: 256)')
    result.add_argument('--budget', type=byte_size, default=512_000_000)
    return result


if __name__ == '__main__':
    sys.exit(run(parser(), measure))
