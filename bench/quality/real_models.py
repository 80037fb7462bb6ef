"""Real models as their packages have them: perplexity in int8 beside the GGUF's in float32, and how
many of 24 greedy tokens are llama.cpp's.

Our weights are rounded once more, llama.cpp's products are: where answers part first, the margin
says by how much ours is likelier than llama.cpp's in float32. Text: what follows the prompt.
"""

from argparse import ArgumentParser, Namespace
from dataclasses import asdict, dataclass
from pathlib import Path
import sys
import tempfile

import numpy as np

from bench.model.families import NEW_TOKENS, as_many, llama_cpp_answer
from bench.quality.fidelity import token_losses
from bench.quality.held_out_text import held_out_text
from bench.quality.perplexity import losses_of, relative
from bench.quality.reference_model import load_reference, reference_logits
from bench.support.command import Report, at_least, command, run, show
from bench.support.tiny_checkpoint import converted
from flash_llm_ros.checkpoint.open import open_checkpoint
from flash_llm_ros.convert.options import ConversionOptions
from flash_llm_ros.engine import Engine, EngineConfig, GenerationRequest
from flash_llm_ros.engine.text.tokenizer import TextTokenizer
from flash_llm_ros.report.prospect import prospect
from flash_llm_ros.store.flash_store import TOKENIZER, FlashStore

PROMPT = 'The capital of France is'


@dataclass(frozen=True)
class Row:
    model: str
    least_budget: int               # bytes
    perplexity: float
    reference: float
    factor: float                   # of one to the other, and its standard error
    error: float
    same: int                       # greedy tokens, as llama.cpp's
    margin: float                   # nats of ours over llama.cpp's where they part, in float32
    text: str


def row_of(model: Path, folder: Path, tokens: int) -> Row:
    store = converted(model, folder / 'store')
    tokenizer = TextTokenizer(store.text(TOKENIZER), store.manifest.model.begin_token)
    text = tokenizer.encode(held_out_text())[:tokens]
    losses = losses_of(store, text, 'exact')
    peer = load_reference(model)
    reference = token_losses(reference_logits(peer, text), text)
    prompt, answer, words = greedy(store)
    theirs = llama_cpp_answer(model, prompt)
    same, margin = as_many(answer, theirs), 0.0
    if same < NEW_TOKENS:
        likely = reference_logits(peer, prompt + answer[:same])[-1]
        margin = float(likely[answer[same]] - likely[theirs[same]])
    floors = prospect(open_checkpoint(model), ConversionOptions(), None, []).floors
    return Row(model.stem, floors[0].budget, float(np.exp(losses.mean())),
               float(np.exp(reference.mean())), *relative(losses, reference), same, margin, words)


def greedy(store: FlashStore) -> tuple[list[int], list[int], str]:
    """Tokens of the prompt, tokens and text of the answer."""
    engine = Engine.open(EngineConfig(store.path, 2 * store.bytes + 500_000_000, 'exact',
                                      context_length=128, threads=1, lock_memory=False))
    try:
        generation = engine.start(GenerationRequest(PROMPT, raw=True, max_tokens=NEW_TOKENS))
        words = ''.join(generation)
        return generation.prompt_tokens, generation.tokens, words
    finally:
        engine.close()


def measure(options: Namespace) -> Report:
    rows = []
    for model in options.models:
        with tempfile.TemporaryDirectory() as folder:
            rows.append(row_of(model, Path(folder), options.tokens))
    show(('model', 'least budget', 'int8', 'float32', 'int8 / float32', "llama.cpp's", 'margin',
          'text'),
         [(row.model, f'{row.least_budget / 1e6:.0f} MB', f'{row.perplexity:.3f}',
           f'{row.reference:.3f}', f'{row.factor:.3f} ± {row.error:.3f}', str(row.same),
           f'{row.margin:+.2f}', ' '.join(row.text.split())) for row in rows])
    return Report([asdict(row) for row in rows],
                  '; '.join(f'{row.model}: {row.factor:.3f}' for row in rows))


def parser() -> ArgumentParser:
    result = command(__doc__)
    result.add_argument('models', type=Path, nargs='+', help='.gguf files')
    result.add_argument('--tokens', type=at_least(3), default=600, help='of the text')
    return result


if __name__ == '__main__':
    sys.exit(run(parser(), measure))
