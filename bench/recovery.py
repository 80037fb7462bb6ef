"""What mode aggressive costs in perplexity, and what each of its parts gives back.

    flash_llm order STORE ORDERED --text FILE
    python bench/recovery.py ORDERED [--share 0.9 0.8] [--tokens 1000] [--text other] [--json PATH]

For each prepared share: the leading neurons alone, as many of every layer and as many as were
allotted to each; these with the mean of what the others add, with the low-rank correction in its
place, with the one that `flash_llm recover` learned, and with the shortlisted head, too.
Perplexity relative to exact mode on a text of bench/held_out_text.py; beside it the bytes that a
token is computed from. Means are those of bench/calibration_text.py.
"""

from argparse import ArgumentParser
from collections.abc import Sequence
import json
from pathlib import Path
import sys
from typing import Any

from calibration_text import calibration_text
from fidelity import engine_logits, token_losses
from floors import weights_per_token
from held_out_text import TEXTS
import numpy as np
from numpy.typing import NDArray
from rich.box import MARKDOWN
from rich.console import Console
from rich.table import Table

from flash_llm_ros.convert.perplexity_growth import Growth
from flash_llm_ros.engine import Engine, EngineConfig
from flash_llm_ros.engine.tail_correction import TailCorrection, load_corrections
from flash_llm_ros.store.aggressive import CORRECTIONS
from flash_llm_ros.store.errors import FlashLlmError
from flash_llm_ros.store.flash_store import CorrectionPlace, FlashStore

Array = NDArray[np.float32]
PARTS = {'equal': 'alone, equal shares', 'alone': 'alone, shares by layer', 'mean': 'with mean',
         'corrected': 'with correction', 'learned': 'with learned correction',
         'all': 'and shortlisted head'}


class LeadingNeurons:
    """Stands in for an exact engine's feed-forward block: all but the leading neurons are 0."""

    def __init__(self, engine: Engine, widths: Sequence[int],
                 corrections: Sequence[TailCorrection] | None) -> None:
        self._dense, self._window = engine.model.feed_forward, engine.model.window
        self._activation = engine.model.spec.activation
        self._widths, self._corrections = widths, corrections
        self.begin = self._dense.begin

    def run(self, layer: int, x: Array, out: Array, dense: bool) -> None:
        core, h = self._window.core, self._dense.activations[:len(x)]
        core.gate_up(self._window.section('gate_up', layer), x, h, self._activation)
        h[:, self._widths[layer]:] = 0
        core.add_rows(self._window.section('down', layer), h, out)
        if self._corrections is not None:
            self._corrections[layer].add(x, out)


class MeanInputs:
    """Stands before an engine's feed-forward block: the mean of each layer's inputs, [d]."""

    def __init__(self, engine: Engine) -> None:
        self._inner = engine.model.feed_forward
        self._sums = np.zeros((engine.model.spec.layers, engine.model.spec.hidden_size))
        self._tokens = 0
        self.begin = self._inner.begin

    def run(self, layer: int, x: Array, out: Array, dense: bool) -> None:
        self._inner.run(layer, x, out, dense)
        self._sums[layer] += x.sum(axis=0)
        self._tokens += len(x) if layer == 0 else 0

    @property
    def means(self) -> Array:
        return (self._sums / self._tokens).astype(np.float32)


def opened(store: FlashStore, tokens: int, share: float | None = None) -> Engine:
    mode = 'exact' if share is None else 'aggressive'
    return Engine.open(EngineConfig(store.path, 2 * store.bytes + 500_000_000, mode,
                                    context_length=tokens, neuron_share=share, lock_memory=False))


def means_of(correction: TailCorrection, x: Array) -> TailCorrection:
    """The correction that always adds what `correction` adds for the mean input `x` [d]."""
    added = np.zeros((1, len(x)), np.float32)
    correction.add(x[None], added)
    nothing = np.zeros((1, len(x)), np.float32)
    return TailCorrection(nothing, nothing.T, added[0])


class Meter:
    """Growth of perplexity on held-out tokens, by what stands in for the feed-forward block."""

    def __init__(self, store: FlashStore, text: str, most_tokens: int) -> None:
        self._store = store
        self._engine = opened(store, most_tokens)
        self._plain = self._engine.model.feed_forward
        self.tokens = self._engine.tokenize(text)[:most_tokens]
        self._exact = self._losses(self._engine)
        inputs = self._engine.model.feed_forward = MeanInputs(self._engine)
        self._losses(self._engine, self._engine.tokenize(calibration_text())[:most_tokens])
        self._means = inputs.means

    def parts(self, share: float) -> dict[str, Growth]:
        """What each of PARTS costs; 'learned' is missing where nothing was."""
        name, setting = self._store.manifest.aggressive.setting(share)
        neurons = self._store.manifest.model.ffn_size
        place, first = self._store.leading_corrections(name), CorrectionPlace(CORRECTIONS, name)
        corrections = load_corrections(self._store, first)
        learned = {} if place == first else {
            'learned': (setting.widths, load_corrections(self._store, place))}
        means = [means_of(*pair) for pair in zip(corrections, self._means, strict=True)]
        equal = [round(share * neurons)] * len(means)
        found = {name: self._leading(*of) for name, of in
                 {'equal': (equal, None), 'alone': (setting.widths, None),
                  'mean': (setting.widths, means),
                  'corrected': (setting.widths, corrections), **learned}.items()}
        engine = opened(self._store, len(self.tokens), share)
        try:
            return {**found, 'all': Growth.of(self._losses(engine), self._exact)}
        finally:
            engine.close()

    def close(self) -> None:
        self._engine.close()

    def _leading(self, widths: Sequence[int],
                 corrections: Sequence[TailCorrection] | None) -> Growth:
        self._engine.model.feed_forward = self._plain
        self._engine.model.feed_forward = LeadingNeurons(self._engine, widths, corrections)
        return Growth.of(self._losses(self._engine), self._exact)

    def _losses(self, engine: Engine, tokens: list[int] | None = None) -> NDArray[np.float64]:
        tokens = self.tokens if tokens is None else tokens
        return token_losses(engine_logits(engine, tokens), tokens)


def _relative(growth: Growth | None) -> str:
    return '' if growth is None else f'{growth.relative:.3f} ± {growth.relative_error:.3f}'


def main() -> int:
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('store', type=Path, help='a store by `flash_llm order`')
    parser.add_argument('--share', type=float, nargs='+', help='default: all prepared ones')
    parser.add_argument('--tokens', type=int, default=1000, help='of the text')
    parser.add_argument('--text', choices=tuple(TEXTS), default='held-out',
                        help='which to measure on (default: held-out)')
    parser.add_argument('--json', type=Path)
    options = parser.parse_args()
    try:
        store = FlashStore.open(options.store)
    except FlashLlmError as error:
        print(f'{parser.prog}: {error}', file=sys.stderr)
        return 1
    aggressive = store.manifest.aggressive
    if aggressive is None:
        parser.error(f'{options.store} is not prepared; use `flash_llm order`')
    print('reading the text in exact mode', file=sys.stderr, flush=True)
    meter = Meter(store, TEXTS[options.text](), options.tokens)
    table = Table('share', *PARTS.values(), 'MB a token', box=MARKDOWN)
    table.add_row('exact', *('1.000' for _ in PARTS),
                  f'{weights_per_token(store, "exact", 1) / 1e6:.1f}')
    rows: list[dict[str, Any]] = []
    for share in options.share or map(float, aggressive.shares):
        print(f'reading the text: {share:.0%} of the neurons', file=sys.stderr, flush=True)
        found, size = meter.parts(share), weights_per_token(store, 'aggressive', share)
        table.add_row(f'{share:.2f}', *map(_relative, map(found.get, PARTS)), f'{size / 1e6:.1f}')
        rows.append({'share': share, 'bytes': size,
                     **{part: growth.relative for part, growth in found.items()},
                     'errors': {part: growth.relative_error for part, growth in found.items()}})
    meter.close()
    Console(width=150).print(table)
    if options.json:
        options.json.write_text(json.dumps({
            'store': store.path.name, 'text_tokens': aggressive.text_tokens,
            'text': options.text, 'tokens': len(meter.tokens), 'rows': rows}, indent=2) + '\n')
    print(f'{store.path.name}, ordered by {aggressive.text_tokens} tokens, {len(meter.tokens)} '
          'others: perplexity relative to exact mode '
          + ', '.join(f'{row["all"]:.3f} at {row["share"]:.0%}' for row in rows))
    return 0


if __name__ == '__main__':
    sys.exit(main())
