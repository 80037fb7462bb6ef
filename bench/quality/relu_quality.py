"""What a ReLU model loses to its predictors, and what windows of its neurons save.

    python bench/relu_quality.py CHECKPOINT [--ffn FILE] [--store FOLDER] [--tokens 1000]
                                 [--json PATH]

The store is made and calibrated, shortly, where there is none; `flash_llm calibrate` does it well.
On held-out text: perplexity with every neuron and with those that are predicted; per layer how
many active neurons the predictor misses and how many others it takes (the paper, section 3.2: 5 %
and 7 %), and the share of the contribution it keeps; how many of a token's neurons are in windows
of the last used ones, which have the rest of the DRAM that the predictors leave; and what the
engine reads per token.
"""

from argparse import ArgumentParser
from dataclasses import dataclass
import json
from pathlib import Path
import sys

from calibration_quality import ffn_bytes, traffic
import numpy as np
from numpy.typing import NDArray
from rich.box import MARKDOWN
from rich.console import Console
from rich.table import Table

from bench.quality.fidelity import engine_logits, token_losses
from bench.quality.held_out_text import held_out_text
from bench.support.ensure_store import ensure_store
from flash_llm_ros.convert.ffn_weights import FfnWeights
from flash_llm_ros.convert.perplexity_growth import Growth
from flash_llm_ros.engine import Engine, EngineConfig
from flash_llm_ros.store.errors import FlashLlmError
from flash_llm_ros.store.flash_store import FlashStore
from flash_llm_ros.store.neuron_reader import NeuronReader

WINDOWS = (0.1, 0.2, 0.3, 0.4, 0.5)
ENGINE_WINDOWS = (0.25, 0.5)
_TRAFFIC_TOKENS = 96
_BUDGET = 500_000_000
Bits = NDArray[np.bool_]


@dataclass(frozen=True)
class LayerFacts:
    """Shares of a layer's neurons, of its active ones, of the others, and of contributions."""

    active: float
    predicted: float
    false_negatives: float      # of the active ones
    false_positives: float      # of the others
    kept: float                 # of all contribution


class Recorder:
    """Stands before the predictors and keeps what they were given and said."""

    def __init__(self, engine: Engine) -> None:
        predictors = engine.model.feed_forward._predictors
        layers = engine.model.spec.layers
        self.inputs: list[list[NDArray[np.float32]]] = [[] for _ in range(layers)]
        self.said: list[list[Bits]] = [[] for _ in range(layers)]
        self._wanted, predictors.wanted = predictors.wanted, self.wanted

    def wanted(self, layer: int, x: NDArray[np.float32]) -> NDArray[np.uint8]:
        found = self._wanted(layer, x)
        self.inputs[layer].append(x.copy())
        self.said[layer].append(found.astype(bool))
        return found


def open_engine(store: Path, mode: str) -> Engine:
    return Engine.open(EngineConfig(store, _BUDGET, mode, context_length=1024, verify=False,
                                    lock_memory=False))


def layer_facts(weights: FfnWeights, x: NDArray[np.float32], predicted: Bits) -> LayerFacts:
    """`x` [tokens, d] and `predicted` [tokens, ffn]."""
    contributions = weights.contributions(x)
    active = contributions > 0
    return LayerFacts(
        float(active.mean()), float(predicted.mean()),
        float((active & ~predicted).sum() / max(active.sum(), 1)),
        float((predicted & ~active).sum() / max((~active).sum(), 1)),
        float(contributions.sum(where=predicted) / max(contributions.sum(), 1e-30)))


def window_facts(used: list[Bits], share: float) -> tuple[float, float]:
    """Hits among a token's neurons, and new ones as a share of the layer.

    The window holds the neurons used last, `share` of the layer's.
    """
    neurons = len(used[0])
    slots = max(1, round(share * neurons))
    last_use = np.zeros(neurons, np.int64)
    hits = new = total = 0
    for token, bits in enumerate(used, 1):
        kept = np.zeros(neurons, bool)
        kept[np.argpartition(-last_use, slots - 1)[:slots]] = True
        kept &= last_use > 0
        hits, total = hits + int((bits & kept).sum()), total + int(bits.sum())
        new += int((bits & ~kept).sum())
        last_use[bits] = token
    return hits / max(total, 1), new / len(used) / neurons


def show(figures: dict) -> None:
    console = Console(width=100)
    table = Table('layer', 'active', 'predicted', 'active but missed', 'others taken',
                  'contribution kept', box=MARKDOWN)
    for layer, facts in enumerate(figures['layers']):
        table.add_row(str(layer), *(f'{value:.1%}' for value in facts.values()))
    mean = {name: float(np.mean([facts[name] for facts in figures['layers']]))
            for name in figures['layers'][0]}
    table.add_row('mean', *(f'{value:.1%}' for value in mean.values()))
    console.print(table)
    predictors = figures['predictor_share']
    windows = Table('window, of the layer', 'and predictors', 'hits',
                    'new neurons a token, of the layer', box=MARKDOWN)
    for row in figures['windows']:
        windows.add_row(f'{row["window"]:.0%}', f'{row["window"] + predictors:.0%}',
                        f'{row["hits"]:.1%}', f'{row["new"]:.2%}')
    console.print(windows)
    reads = Table('window, of the feed-forward bytes', 'read per token: exact', 'sparse',
                  box=MARKDOWN)
    for row in figures['traffic']:
        reads.add_row(f'{row["window"]:.0%}', *(
            f'{row[mode].read:.1%}, {row[mode].milliseconds:.0f} ms'
            for mode in ('exact', 'sparse')))
    console.print(reads)
    exact, sparse = figures['perplexity_exact'], figures['perplexity_predicted']
    print(f'{figures["tokens"]} tokens: perplexity {exact:.2f} with every neuron, {sparse:.2f} '
          f'({figures["relative"]:.3f} ± {figures["error"]:.3f} times) with the predicted '
          f'{mean["predicted"]:.1%}; {mean["active"]:.1%} are active; missed '
          f'{mean["false_negatives"]:.1%} of them, taken {mean["false_positives"]:.1%} of the '
          f'others; predictors are {predictors:.1%} of the feed-forward bytes')


def main() -> int:
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('checkpoint', type=Path, help='a ReLU model; `flash_llm relufy` makes one')
    parser.add_argument('--ffn', type=Path, help='its feed-forward weights, by `flash_llm relufy`')
    parser.add_argument('--store', type=Path, help='(default: CHECKPOINT.store or FFN.store)')
    parser.add_argument('--tokens', type=int, default=1000, help='of held-out text (default: 1000)')
    parser.add_argument('--json', type=Path, help='write the figures there')
    options = parser.parse_args()
    own = options.ffn or options.checkpoint
    path = options.store or own.with_name(f'{own.name}.store')
    try:
        store = FlashStore.open(ensure_store(options.checkpoint, path, ffn=options.ffn))
    except (FlashLlmError, OSError, ValueError) as error:
        print(f'{parser.prog}: {error}', file=sys.stderr)
        return 1
    if store.manifest.layout != 'bundled':
        parser.error(f'{own} is no ReLU model')
    exact = open_engine(path, 'exact')
    tokens = exact.tokenize(held_out_text())[:options.tokens]
    every = token_losses(engine_logits(exact, tokens), tokens)
    exact.close()
    sparse = open_engine(path, 'sparse')
    recorder = Recorder(sparse)
    predicted = token_losses(engine_logits(sparse, tokens, dense=False), tokens)
    sparse.close()
    growth = Growth.of(predicted, every)
    figures: dict = {
        'tokens': len(tokens), 'perplexity_exact': float(np.exp(every.mean())),
        'perplexity_predicted': float(np.exp(predicted.mean())), 'relative': growth.relative,
        'error': growth.relative_error,
        'predictor_share': store.manifest.calibration.predictor_bytes / ffn_bytes(store)}
    with NeuronReader(store) as reader:
        figures['layers'] = [vars(layer_facts(FfnWeights(reader, store.manifest, layer),
                                              np.array(inputs), np.array(said)))
                             for layer, (inputs, said) in enumerate(
                                 zip(recorder.inputs, recorder.said, strict=True))]
    figures['windows'] = []
    for share in WINDOWS:
        hits, new = zip(*(window_facts(said, share) for said in recorder.said), strict=True)
        figures['windows'].append({'window': share, 'hits': float(np.mean(hits)),
                                   'new': float(np.mean(new))})
    figures['traffic'] = [{'window': window, **{
        mode: traffic(store, tokens[:_TRAFFIC_TOKENS], mode, mode, window)
        for mode in ('exact', 'sparse')}} for window in ENGINE_WINDOWS]
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2, default=vars) + '\n')
    show(figures)
    return 0


if __name__ == '__main__':
    sys.exit(main())
