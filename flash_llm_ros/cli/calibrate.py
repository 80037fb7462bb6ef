"""`flash_llm calibrate`: other predictors for a finished flash store of a ReLU model, from text."""

from argparse import ArgumentParser, Namespace
from pathlib import Path

from rich.console import Console
from rich.table import Table

from flash_llm_ros.cli.main import fail
from flash_llm_ros.cli.progress import Steps
from flash_llm_ros.convert.calibration import CalibrationOptions, recalibrate
from flash_llm_ros.convert.calibration_text import default_text, read_texts
from flash_llm_ros.engine.byte_size import parse_byte_size
from flash_llm_ros.store.errors import FlashLlmError
from flash_llm_ros.store.manifest import Calibration

EPILOG = """\
examples:
  flash_llm calibrate /data/relu.store --text missions.txt chat.jsonl
  flash_llm calibrate /data/relu.store --text chat.jsonl --predictor-bytes 40MB

`convert` has calibrated the store already, on text of the package. Models that are not
sparse by nature have nothing to calibrate.
"""


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument('store', type=Path, help='a flash store; its manifest is replaced')
    parser.add_argument('--text', type=Path, nargs='+', metavar='FILE',
                        help='UTF-8 text or .jsonl files, best of what the robot will be asked '
                             "(default: the package's own text)")
    parser.add_argument('--tokens', type=int, metavar='N', default=CalibrationOptions.most_tokens,
                        help='read at most so many (default: %(default)s)')
    parser.add_argument('--measured-tokens', type=int, metavar='N',
                        default=CalibrationOptions.measured_tokens,
                        help='held-out tokens that perplexity is measured on, at most a quarter '
                             'of the text (default: %(default)s)')
    parser.add_argument('--predictor-bytes', metavar='SIZE',
                        help='DRAM of all predictors (default: 25 %% of the feed-forward weights)')
    parser.add_argument('--threads', type=int, default=1, help='that compute (default: 1)')


def run(options: Namespace) -> int:
    budget = options.predictor_bytes
    try:
        chosen = CalibrationOptions(
            most_tokens=options.tokens, measured_tokens=options.measured_tokens,
            predictor_bytes=budget and parse_byte_size('predictor-bytes', budget),
            threads=options.threads)
        texts = read_texts(options.text) if options.text else [default_text()]
        with Steps() as steps:
            store = recalibrate(options.store, texts, chosen, steps)
    except (FlashLlmError, OSError, ValueError) as error:
        return fail(error)
    Console(width=100).print(_layers(store.manifest.calibration))
    print(price(store.manifest.calibration))
    return 0


def price(calibration: Calibration) -> str:
    """What mode gated costs and saves, in a line."""
    return (f'{calibration.mean_zeros:.1%} of the activations are 0; '
            f'mode gated: {calibration.active_share:.1%} of the neurons, in '
            f'{calibration.groups_share:.1%} of the groups; perplexity times '
            f'{calibration.perplexity_text}; predictors of '
            f'{calibration.predictor_bytes / 1e6:.1f} MB find {calibration.mean_recall:.2%} of '
            'the contribution')


def _layers(calibration: Calibration) -> Table:
    table = Table('layer', 'zeros', 'predictor', 'KB', 'recall', 'precision')
    for layer, facts in enumerate(calibration.predictors):
        table.add_row(str(layer), f'{facts.zeros:.1%}', f'{facts.kind} {facts.size}',
                      f'{facts.bytes / 1e3:.0f}', f'{facts.recall:.2%}', f'{facts.precision:.1%}')
    return table
