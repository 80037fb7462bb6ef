"""The price of a store in perplexity: exact and sparse, beside the GGUF in float32.

    python bench/store_quality.py MODEL.gguf STORE [--sparsity 0.5 0.7] [--share 0.85]
        [--tokens 1000] [--text other] [--json PATH]

The reference is transformers on the dequantised weights, the text is held out from calibration.
"""

from argparse import ArgumentParser
import json
from pathlib import Path
import sys

from rich.box import MARKDOWN
from rich.console import Console
from rich.table import Table

from bench.quality.fidelity import engine_logits, perplexity
from bench.quality.held_out_text import TEXTS
from bench.quality.reference_model import load_reference, reference_logits
from flash_llm_ros.engine import Engine, EngineConfig
from flash_llm_ros.engine.text.tokenizer import TextTokenizer
from flash_llm_ros.store.errors import FlashLlmError
from flash_llm_ros.store.flash_store import MANIFEST, TOKENIZER, FlashStore, file_sha256


def perplexity_of(store: FlashStore, tokens: list[int], sparsity: float | None,
                  share: float | None = None) -> float:
    """In exact mode, at this sparsity (token by token, as answers are made) or at this share."""
    budget = 2 * store.bytes + 500_000_000      # quality does not depend on it, speed does
    mode = 'aggressive' if share else 'exact' if sparsity is None else 'sparse'
    engine = Engine.open(EngineConfig(store.path, budget, mode, context_length=len(tokens),
                                      sparsity=sparsity, neuron_share=share, threads=2,
                                      lock_memory=False))
    try:
        return perplexity(engine_logits(engine, tokens, dense=sparsity is None), tokens)
    finally:
        engine.close()


def reference_perplexity(model: Path, tokens: list[int]) -> float:
    return perplexity(reference_logits(load_reference(model), tokens), tokens)


def regime_name(sparsity: float | None, share: float | None = None) -> str:
    if share:
        return f'aggressive {share:.0%}'
    return 'exact' if sparsity is None else f'sparse {sparsity:.0%}'


def main() -> int:
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('model', type=Path)
    parser.add_argument('store', type=Path)
    parser.add_argument('--sparsity', type=float, nargs='*', default=[])
    parser.add_argument('--share', type=float, nargs='*', default=[],
                        help='of mode aggressive, for a store by `flash_llm order`')
    parser.add_argument('--tokens', type=int, default=1000, help='tokens of held-out text')
    parser.add_argument('--text', choices=tuple(TEXTS), default='held-out',
                        help='other: of another kind than what models here were calibrated and '
                             'trained with (default: held-out)')
    parser.add_argument('--json', type=Path)
    options = parser.parse_args()
    try:
        store = FlashStore.open(options.store)
    except FlashLlmError as error:
        print(f'{parser.prog}: {error}', file=sys.stderr)
        return 1
    tokenizer = TextTokenizer(store.text(TOKENIZER), store.manifest.model.begin_token)
    tokens = tokenizer.encode(TEXTS[options.text]())[:options.tokens]
    found = {}
    settings = [(None, None), *((sparsity, None) for sparsity in options.sparsity),
                *((None, share) for share in options.share)]
    for setting in settings:
        name = regime_name(*setting)
        print(f'reading the text: {name}', file=sys.stderr, flush=True)
        found[name] = perplexity_of(store, tokens, *setting)
    print('reading the text: the reference', file=sys.stderr, flush=True)
    reference = reference_perplexity(options.model, tokens)
    table = Table('regime', 'perplexity', 'relative to the GGUF', box=MARKDOWN)
    table.add_row('GGUF in float32', f'{reference:.3f}', '1.000')
    for name, value in found.items():
        table.add_row(name, f'{value:.3f}', f'{value / reference:.3f}')
    Console(width=100).print(table)
    figures = {'store': str(store.path), 'manifest': file_sha256(store.path / MANIFEST),
               'text': options.text, 'tokens': len(tokens), 'reference': reference,
               'perplexity': found,
               'relative': {name: value / reference for name, value in found.items()}}
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + '\n')
    print(f'{store.path.name}, {len(tokens)} tokens: perplexity relative to the GGUF '
          + ', '.join(f'{value:.3f} {name}' for name, value in figures['relative'].items()))
    return 0


if __name__ == '__main__':
    sys.exit(main())
