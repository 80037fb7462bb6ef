"""The price of a store in perplexity on text that calibration never saw, in each mode and with
keys and values of 8 bits and of 16, beside the GGUF in float32.

The reference is transformers on the dequantised weights. Gated mode reads the text token by token,
as answers are made.
"""

from argparse import ArgumentParser, Namespace
from pathlib import Path
import sys

import numpy as np

from bench.quality.fidelity import engine_logits, token_losses
from bench.quality.held_out_text import TEXTS
from bench.quality.reference_model import load_reference, reference_logits
from bench.support.command import Report, at_least, command, run, show
from flash_llm_ros.engine import Engine, EngineConfig
from flash_llm_ros.engine.text.tokenizer import TextTokenizer
from flash_llm_ros.store.flash_store import TOKENIZER, FlashStore


def losses_of(store: FlashStore, tokens: list[int], mode: str, **options: str) -> np.ndarray:
    """Loss of each token but the first, in nats."""
    budget = 2 * store.bytes + 500_000_000      # quality does not depend on it, speed does
    engine = Engine.open(EngineConfig(store.path, budget, mode, context_length=len(tokens),
                                      threads=2, lock_memory=False, **options))
    try:
        return token_losses(engine_logits(engine, tokens, dense=mode == 'exact'), tokens)
    finally:
        engine.close()


def relative(losses: np.ndarray, reference: np.ndarray) -> tuple[float, float]:
    """Perplexity as a multiple of the reference's, and one standard error of that."""
    growth = losses - reference
    factor = float(np.exp(growth.mean()))
    return factor, factor * float(growth.std(ddof=1)) / len(growth) ** 0.5


def measure(options: Namespace) -> Report:
    store = FlashStore.open(options.store)
    tokenizer = TextTokenizer(store.text(TOKENIZER), store.manifest.model.begin_token)
    tokens = tokenizer.encode(TEXTS[options.text]())[:options.tokens]
    modes = ['exact', *['gated'] * (store.manifest.calibration is not None)]
    losses = {mode: losses_of(store, tokens, mode) for mode in modes}
    if store.manifest.model.core_attention:
        losses['exact, KV cache int16'] = losses_of(store, tokens, 'exact', kv_cache='int16')
    reference = token_losses(reference_logits(load_reference(options.model), tokens), tokens)
    factors = {mode: relative(found, reference) for mode, found in losses.items()}
    perplexities = {name: float(np.exp(found.mean()))
                    for name, found in {'GGUF in float32': reference, **losses}.items()}
    show(('', 'perplexity', 'relative to the GGUF'),
         [(name, f'{perplexity:.3f}', '{:.3f} ± {:.3f}'.format(*factors.get(name, (1, 0))))
          for name, perplexity in perplexities.items()])
    return Report({'text': options.text, 'tokens': len(tokens), 'perplexity': perplexities,
                   'relative': factors},
                  f'{store.path.name}, {len(tokens)} tokens: perplexity relative to the GGUF '
                  + ', '.join(f'{factor:.3f} {mode}' for mode, (factor, _) in factors.items()))


def parser() -> ArgumentParser:
    result = command(__doc__)
    result.add_argument('model', type=Path, help='a .gguf file')
    result.add_argument('store', type=Path)
    result.add_argument('--tokens', type=at_least(3), default=1000, help='of the text')
    result.add_argument('--text', choices=tuple(TEXTS), default='held-out',
                        help='other: of another kind (default: held-out)')
    return result


if __name__ == '__main__':
    sys.exit(run(parser(), measure))
