"""`flash_llm relufy`: a SwiGLU checkpoint becomes a ReLU one, by self-distillation."""

from argparse import ArgumentParser, Namespace
from pathlib import Path
import sys

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from flash_llm_ros.checkpoint.checkpoint import Checkpoint
from flash_llm_ros.checkpoint.errors import CheckpointError
from flash_llm_ros.checkpoint.huggingface_writer import write_huggingface
from flash_llm_ros.checkpoint.open import open_checkpoint
from flash_llm_ros.cli.main import fail
from flash_llm_ros.cli.progress import Steps
from flash_llm_ros.convert.calibration_text import read_texts

EPILOG = """\
examples:
  flash_llm relufy SmolLM2.gguf smollm2-relu --text manuals/*.txt chats.jsonl --tokens 10000000
  flash_llm relufy SmolLM2.gguf smollm2-relu --written 2000000
  flash_llm convert smollm2-relu smollm2-relu.store
  flash_llm relufy SmolLM2.gguf smollm2-relu.ffn --text manuals.jsonl --threshold 0.1
  flash_llm convert SmolLM2.gguf smollm2-relu.store --ffn smollm2-relu.ffn

The same command goes on after an interruption; another --tokens makes it longer or shorter.
Some hundred thousand tokens keep the text readable, millions are for real use. A model that is to
answer must see conversations: in the text, in the form of its chat template, or by --written.
"""
_HELD_OUT = 4096                # tokens at most, and a tenth of the text at most
_HELD_OUT_SHARE = 0.1


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument('checkpoint', help='a .gguf file or a Hugging Face folder: the teacher')
    parser.add_argument('output', type=Path,
                        help='the Hugging Face folder to write; or NAME.ffn, a file of the '
                             'feed-forward weights alone, rounded, for `convert --ffn`')
    parser.add_argument('--text', type=Path, nargs='+', metavar='FILE', default=[],
                        help='UTF-8 text or .jsonl files to train on')
    parser.add_argument('--written', type=int, default=0, metavar='N',
                        help='train on so many tokens that the teacher writes, too, half of them '
                             'conversations where it has a chat template (default: 0)')
    parser.add_argument('--held-out', type=Path, nargs='+', metavar='FILE',
                        help='text to measure on (default: the end of the text)')
    parser.add_argument('--start', metavar='CHECKPOINT',
                        help="begin with the feed-forward weights of this checkpoint or .ffn "
                             "file (default: the teacher's)")
    parser.add_argument('--tokens', type=int, default=2_000_000, metavar='N',
                        help='to train on, all in all (default: 2000000)')
    parser.add_argument('--zeros', type=float, default=0.8, metavar='SHARE',
                        help='of the activations, to be reached halfway (default: 0.8)')
    parser.add_argument('--threshold', type=float, default=0.0, metavar='X',
                        help='relu is 0 up to there (FATReLU), reached halfway: more zeros for '
                             'little (default: 0)')
    parser.add_argument('--learning-rate', type=float, default=4e-4, metavar='RATE',
                        help='the largest one (default: 4e-4)')
    parser.add_argument('--length', type=int, default=256, metavar='N',
                        help='tokens of a sequence (default: 256)')
    parser.add_argument('--threads', type=int, default=2, help='that compute (default: 2)')
    parser.add_argument('--work', type=Path, metavar='DIR',
                        help='keeps what is trained, and stays there (default: .OUTPUT.relufy '
                             'beside OUTPUT; three times the feed-forward weights in float32)')


def run(options: Namespace) -> int:
    try:
        import torch
    except ImportError:
        return fail(ValueError('relufy needs PyTorch: pip install flash_llm_ros[relufy]'))
    if options.threads < 1:
        return fail(ValueError(f'threads is {options.threads}; it must be at least 1'))
    torch.set_num_threads(options.threads)
    try:
        return _run(options)
    except (CheckpointError, OSError, ValueError) as error:
        return fail(error)


def _run(options: Namespace) -> int:
    from flash_llm_ros.calibrate.relufy import Relufication, RelufyOptions, Step
    from flash_llm_ros.checkpoint.ffn_file import SUFFIX, write_ffn_file

    output = options.output.absolute()
    work = options.work or output.with_name(f'.{output.name}.relufy')
    if output.exists():
        raise FileExistsError(f'{output} exists; give another name.')
    chosen = RelufyOptions(tokens=options.tokens, zeros=options.zeros, threshold=options.threshold,
                           length=options.length, learning_rate=options.learning_rate)
    teacher = open_checkpoint(options.checkpoint)
    start = teacher
    if options.start:
        start = (open_checkpoint(options.checkpoint, options.start)
                 if options.start.endswith(SUFFIX) else open_checkpoint(options.start))
    with Steps() as steps:
        text, held_out = _texts(options, teacher, work, steps)
        training = Relufication(teacher, start, text, held_out, chosen, work / 'state.pt')

        def report(step: Step) -> None:
            steps('training', min(step.tokens, options.tokens), options.tokens)
            if found := step.measured:
                print(f'{found.tokens} tokens: perplexity {found.perplexity:.3f}, '
                      f"{found.relative:.3f} times the teacher's; {found.zeros:.1%} zeros; "
                      f'divergence {step.divergence:.3f} nats, error {step.error:.3f}',
                      file=sys.stderr, flush=True)

        training.train(report)
    found, threshold = training.measure(), training.threshold
    if output.suffix == SUFFIX:
        write_ffn_file(output, training.weights(), threshold)
    else:
        activation = ({'hidden_act': 'fatrelu', 'hidden_act_param': threshold} if threshold
                      else {'hidden_act': 'relu'})
        write_huggingface(teacher, output, activation, dict(training.weights()))
    print(f'{output}: {found.tokens} tokens, perplexity {found.perplexity:.3f}, '
          f"{found.relative:.3f} times the teacher's {training.teacher_perplexity:.3f} on "
          f'{len(held_out)} held-out tokens; {found.zeros:.1%} zeros')
    return 0


def _texts(options: Namespace, teacher: Checkpoint, work: Path, steps: Steps
           ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """What to train on, and what to measure on."""
    tokenizer = Tokenizer.from_str(teacher.tokenizer_json)
    end = list(teacher.spec.end_tokens[:1])

    def tokens(paths: list[Path]) -> NDArray[np.int64]:
        found = [token for text in read_texts(paths) for token in (*tokenizer.encode(text).ids,
                                                                   *end)]
        return np.array(found, np.int64)

    text = tokens(options.text)
    if options.written > 0:
        text = np.concatenate([_written(options, teacher, work, steps), text])
    if options.held_out:
        return text, tokens(options.held_out)[:_HELD_OUT]
    last = min(_HELD_OUT, int(_HELD_OUT_SHARE * len(text)))
    if not last:
        raise ValueError('there is no text; give --text, --written or both')
    return text[:-last], text[-last:]


def _written(options: Namespace, teacher: Checkpoint, work: Path,
             steps: Steps) -> NDArray[np.int64]:
    """Kept in the work folder, because training that goes on needs the same text."""
    from flash_llm_ros.calibrate.teacher_text import write_text

    kept = work / f'written-{options.written}-{options.length}.npy'
    if not kept.exists():
        rows = write_text(teacher, options.written, options.length,
                          lambda done, total: steps('writing text', done, total))
        work.mkdir(parents=True, exist_ok=True)
        partial = kept.with_suffix('.new')
        with partial.open('wb') as file:
            np.save(file, rows)
        partial.rename(kept)
    return np.load(kept).ravel()
