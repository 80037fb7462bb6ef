"""`flash_llm calibrate`: thresholds and predictors of a finished flash store, from text."""

from argparse import ArgumentParser, Namespace
from pathlib import Path
import resource

from rich.console import Console
from rich.table import Table

from flash_llm_ros.calibrate.threshold_search import FoundThresholds
from flash_llm_ros.calibrate.trained_predictor import TorchMissingError, torch_is_installed
from flash_llm_ros.cli.main import fail
from flash_llm_ros.cli.progress import Steps
from flash_llm_ros.convert.calibration import (
    WORK_FOLDERS,
    CalibratedStore,
    CalibrationOptions,
    recalibrate,
)
from flash_llm_ros.convert.calibration_text import read_texts
from flash_llm_ros.convert.perplexity_growth import Growth
from flash_llm_ros.convert.predictor_forms import DEFAULT_FORMS, TRAINED_FORMS
from flash_llm_ros.convert.resumable_folder import remove_parts
from flash_llm_ros.engine.byte_size import parse_byte_size
from flash_llm_ros.store.errors import FlashLlmError
from flash_llm_ros.store.manifest import Calibration

EPILOG = """\
examples:
  flash_llm calibrate /data/qwen.store                         with text that the model writes
  flash_llm calibrate /data/qwen.store --text missions.txt chat.jsonl
  flash_llm calibrate /data/qwen.store --text chat.jsonl --most-loss 0.01

The same command goes on after an interruption.
"""


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument('store', type=Path, help='a flash store; its manifest is replaced')
    parser.add_argument('--text', type=Path, nargs='+', metavar='FILE',
                        help='UTF-8 text or .jsonl files, best of what the robot will be asked '
                             '(default: text that the model writes)')
    parser.add_argument('--tokens', type=int, metavar='N',
                        help='read at most so many (default: 16384, or 4096 that the model '
                             'writes)')
    parser.add_argument('--measured-tokens', type=int, default=1024, metavar='N',
                        help='held-out tokens that perplexity is measured on (default: 1024; 0: '
                             'measure nothing, leave out the same share of every layer)')
    parser.add_argument('--most-loss', type=float, default=0.02, metavar='SHARE',
                        help='by how much perplexity may grow at the default sparsity, two '
                             'standard errors of the measurement included (default: 0.02)')
    parser.add_argument('--predictor-bytes', metavar='SIZE',
                        help='DRAM of all predictors (default: 10 %% of the feed-forward weights, '
                             '25 %% of those of a ReLU model)')
    parser.add_argument('--train', action='store_true',
                        help='try trained predictors, too, which takes much longer; needs torch '
                             '(pip install "flash_llm_ros[calibrate]")')
    parser.add_argument('--threads', type=int, default=1, help='that compute (default: 1)')
    parser.add_argument('--work', type=Path, metavar='DIR',
                        help='keeps what is done until all is, so that the same command goes on '
                             'after an interruption (default: .STORE.calibration beside STORE)')
    parser.add_argument('--keep-work', action='store_true', help='do not remove it then, either')


def run(options: Namespace) -> int:
    store = options.store.absolute()
    work = options.work or store.with_name(f'.{store.name}.calibration')
    try:
        chosen = _options(options)
        texts = read_texts(options.text) if options.text else None
        with Steps() as steps:
            found = recalibrate(store, texts, work, chosen, steps)
    except (FlashLlmError, OSError, ValueError) as error:
        return fail(error)
    if not options.keep_work:
        remove_parts(work, WORK_FOLDERS)
    _print(found, Console(width=100))
    return 0


def _options(options: Namespace) -> CalibrationOptions:
    if options.train and not torch_is_installed():
        raise TorchMissingError
    budget = options.predictor_bytes
    return CalibrationOptions(
        most_tokens=options.tokens or (16384 if options.text else 4096),
        forms=DEFAULT_FORMS + (TRAINED_FORMS if options.train else ()),
        predictor_bytes=budget and parse_byte_size('predictor-bytes', budget),
        measured_tokens=options.measured_tokens, most_loss=options.most_loss,
        threads=options.threads)


def _print(found: CalibratedStore, console: Console) -> None:
    calibration = found.store.manifest.calibration
    if calibration.perplexity:
        console.print(_price(calibration, found.thresholds))
    console.print(_layers(calibration))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(f'{found.store.path}: {calibration.text_tokens} tokens; leaves out '
          f'{calibration.default_sparsity:.0%} by default; predictors of '
          f'{calibration.predictor_bytes / 1e6:.1f} MB find {calibration.mean_recall:.1%} of the '
          f'active contribution; peak RSS {peak / 1e6:.0f} MB')


def _price(calibration: Calibration, found: FoundThresholds) -> Table:
    table = Table('left out', 'perplexity, held out', 'growth', 'growth, all layers alike',
                  'shares of the layers')
    table.add_row('0 %', f'{calibration.perplexity["0.00"]:.3f}', '', '', '')
    for key, shares in calibration.layer_sparsity.items():
        table.add_row(f'{float(key):.0%}', f'{calibration.perplexity[key]:.3f}',
                      _grown(found.growth[key]), _grown(found.uniform_growth[key]),
                      f'{min(shares):.0%} to {max(shares):.0%}')
    return table


def _grown(growth: Growth) -> str:
    return f'{growth.relative - 1:+.1%} ± {growth.relative_error:.1%}'


def _layers(calibration: Calibration) -> Table:
    table = Table('layer', 'predictor', 'KB', 'recall', 'precision', 'kept contribution')
    for layer, facts in enumerate(calibration.predictors):
        table.add_row(str(layer), f'{facts.kind} {facts.size}', f'{facts.bytes / 1e3:.0f}',
                      *(f'{value:.1%}' for value in (facts.recall, facts.precision, facts.kept)))
    return table
