"""What a threshold after training costs a ReLU model: perplexity against the share of zeros.

    python bench/fatrelu.py STORE [--threshold 0.05 0.1] [--tokens 600] [--json PATH]

FATReLU (arXiv 2402.13516): relu is 0 up to a threshold, the same for all layers, which a checkpoint
gives as `hidden_act: fatrelu` and `hidden_act_param`. Exact mode on bench/held_out_text.py.
"""

from argparse import ArgumentParser
import json
from pathlib import Path
import sys

from fidelity import engine_logits, token_losses
from held_out_text import held_out_text
import numpy as np
from numpy.typing import NDArray
from rich.box import MARKDOWN
from rich.console import Console
from rich.table import Table

from flash_llm_ros.convert.ffn_weights import FfnWeights
from flash_llm_ros.convert.perplexity_growth import Growth
from flash_llm_ros.engine import Engine, EngineConfig
from flash_llm_ros.store.errors import FlashLlmError
from flash_llm_ros.store.flash_store import FlashStore
from flash_llm_ros.store.neuron_reader import NeuronReader

Array = NDArray[np.float32]


class Thresholded:
    """Stands in for an exact engine's feed-forward block and keeps its inputs, [tokens, d]."""

    def __init__(self, engine: Engine, threshold: float) -> None:
        model = engine.model
        self._window, self._biases = model.window, model.feed_forward.biases
        self._activation, self._threshold = model.spec.activation, threshold
        self.inputs: list[list[Array]] = [[] for _ in range(model.spec.layers)]
        self.begin = model.feed_forward.begin

    def run(self, layer: int, x: Array, out: Array, dense: bool) -> None:
        self.inputs[layer].append(x.copy())
        self._window.core.bundled(self._window.section('bundle', layer), x, out, self._activation,
                                  self._biases[layer], self._threshold)


def zeros(store: FlashStore, inputs: list[list[Array]], threshold: float) -> float:
    """Share of the neurons that are zero, mean over layers."""
    with NeuronReader(store) as reader:
        return float(np.mean([(FfnWeights(reader, store.manifest, layer).gates(
            np.concatenate(parts)) <= threshold).mean() for layer, parts in enumerate(inputs)]))


def main() -> int:
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('store', type=Path, help='of a ReLU model')
    parser.add_argument('--threshold', type=float, nargs='+', default=[0.05, 0.1, 0.2, 0.4])
    parser.add_argument('--tokens', type=int, default=600, help='of held-out text (default: 600)')
    parser.add_argument('--json', type=Path, help='write the figures there')
    options = parser.parse_args()
    try:
        store = FlashStore.open(options.store)
    except FlashLlmError as error:
        print(f'{parser.prog}: {error}', file=sys.stderr)
        return 1
    if store.manifest.layout != 'bundled':
        parser.error(f'{options.store} is not of a ReLU model')
    engine = Engine.open(EngineConfig(store.path, 2 * store.bytes + 300_000_000,
                                      context_length=options.tokens, lock_memory=False))
    tokens = engine.tokenize(held_out_text())[:options.tokens]
    own, plain = store.manifest.model.relu_threshold, engine.model.feed_forward
    table = Table('threshold', 'zeros', 'perplexity', 'of before', box=MARKDOWN)
    rows, before = [], None
    for threshold in (own, *options.threshold):
        print(f'reading the text with {threshold:g}', file=sys.stderr, flush=True)
        engine.model.feed_forward = plain
        blocks = engine.model.feed_forward = Thresholded(engine, threshold)
        losses = token_losses(engine_logits(engine, tokens), tokens)
        before = losses if before is None else before
        growth = Growth.of(losses, before)
        row = {'threshold': threshold, 'zeros': zeros(store, blocks.inputs, threshold),
               'perplexity': float(np.exp(losses.mean())), 'relative': growth.relative,
               'error': growth.relative_error}
        rows.append(row)
        table.add_row(f'{threshold:g}', f'{row["zeros"]:.1%}', f'{row["perplexity"]:.2f}',
                      f'{growth.relative:.3f} ± {growth.relative_error:.3f}')
    engine.close()
    Console(width=100).print(table)
    if options.json:
        options.json.write_text(json.dumps({'store': store.manifest.model.name,
                                            'tokens': len(tokens), 'rows': rows}, indent=2) + '\n')
    print(f'{store.manifest.model.name}, {len(tokens)} tokens: perplexity relative to threshold '
          f'{own:g} ' + ', '.join(f'{row["relative"]:.3f} at {row["zeros"]:.0%} zeros'
                                  for row in rows[1:]))
    return 0


if __name__ == '__main__':
    sys.exit(main())
