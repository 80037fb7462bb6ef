"""What mode aggressive costs in perplexity, and what each of its parts gives back.

    flash_llm order STORE ORDERED --text FILE
    python bench/recovery.py ORDERED [--share 0.9 0.8] [--tokens 500] [--json PATH]

For each prepared share: the leading neurons alone, with the correction for the others, and with the
shortlisted head, too. Perplexity relative to exact mode on bench/held_out_text.py; beside it the
bytes that a token is computed from.
"""

from argparse import ArgumentParser
import json
from pathlib import Path
import sys
from typing import Any

from fidelity import engine_logits, perplexity
from floors import weights_per_token
from held_out_text import held_out_text
import numpy as np
from rich.box import MARKDOWN
from rich.console import Console
from rich.table import Table

from flash_llm_ros.engine import Engine, EngineConfig
from flash_llm_ros.engine.leading_feed_forward import LeadingFeedForward, TailCorrection
from flash_llm_ros.store.flash_store import FlashStore


def opened(store: FlashStore, tokens: int, share: float | None = None) -> Engine:
    mode = 'exact' if share is None else 'aggressive'
    return Engine.open(EngineConfig(store.path, 2 * store.bytes + 500_000_000, mode,
                                    context_length=tokens, neuron_share=share, lock_memory=False))


def without_corrections(engine: Engine, widths: list[int]) -> LeadingFeedForward:
    spec = engine.model.spec
    nothing = TailCorrection(np.zeros((1, spec.hidden_size), np.float32),
                             np.zeros((spec.hidden_size, 1), np.float32),
                             np.zeros(spec.hidden_size, np.float32))
    return LeadingFeedForward(engine.model.window, spec, engine.model.chunk, widths,
                              [nothing] * spec.layers)


def measure(store: FlashStore, share: float, tokens: list[int]) -> dict[str, float]:
    """Perplexities of one share."""
    engine = opened(store, len(tokens), share)
    try:
        model = engine.model
        found = {'all': perplexity(engine_logits(engine, tokens), tokens)}
        model.shortlist = None              # the window's own head, which is not read ahead
        found['corrected'] = perplexity(engine_logits(engine, tokens), tokens)
        _, setting = store.manifest.aggressive.setting(share)
        model.feed_forward = without_corrections(engine, setting.widths)
        found['alone'] = perplexity(engine_logits(engine, tokens), tokens)
    finally:
        engine.close()
    return found


def main() -> int:
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('store', type=Path, help='a store by `flash_llm order`')
    parser.add_argument('--share', type=float, nargs='+', help='default: all prepared ones')
    parser.add_argument('--tokens', type=int, default=500, help='tokens of held-out text')
    parser.add_argument('--json', type=Path)
    options = parser.parse_args()
    store = FlashStore.open(options.store)
    aggressive = store.manifest.aggressive
    if aggressive is None:
        parser.error(f'{options.store} is not prepared; use `flash_llm order`')
    engine = opened(store, options.tokens)
    tokens = engine.tokenize(held_out_text())[:options.tokens]
    exact = perplexity(engine_logits(engine, tokens), tokens)
    engine.close()
    table = Table('share', 'neurons alone', 'with correction', 'and shortlisted head',
                  'MB a token', box=MARKDOWN)
    table.add_row('exact', '1.000', '', '', f'{weights_per_token(store, "exact", 1) / 1e6:.1f}')
    rows: list[dict[str, Any]] = []
    for share in options.share or map(float, aggressive.shares):
        print(f'reading the text: {share:.0%} of the neurons', file=sys.stderr, flush=True)
        found = measure(store, share, tokens)
        relative = {name: value / exact for name, value in found.items()}
        size = weights_per_token(store, 'aggressive', share)
        table.add_row(f'{share:.2f}', *(f'{relative[name]:.3f}' for name in
                                        ('alone', 'corrected', 'all')), f'{size / 1e6:.1f}')
        rows.append({'share': share, 'bytes': size, **relative})
    Console(width=100).print(table)
    if options.json:
        options.json.write_text(json.dumps({'store': str(store.path), 'tokens': len(tokens),
                                            'exact': exact, 'rows': rows}, indent=2) + '\n')
    print(f'{store.path.name}, {len(tokens)} tokens: perplexity relative to exact mode '
          + ', '.join(f'{row["all"]:.3f} at {row["share"]:.0%}' for row in rows))
    return 0


if __name__ == '__main__':
    sys.exit(main())
